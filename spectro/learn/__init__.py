"""Pictures in, checkpoint out."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations asks the network for a newer version otherwise
