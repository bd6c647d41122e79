"""Every error that spectro raises, as one tree.

    SpectroError                 base class; the message says what is wrong and how to fix it
    ├── AudioError               an unusable recording: unreadable, empty, silent, too long, ...
    │   ├── AudioFormatError     not a recording, or a truncated one
    │   └── AudioLengthError     longer than allowed
    ├── ImageError               a PNG that is not a picture of the expected spec
    │   └── ImageFormatError     not a complete PNG
    ├── SpecError                a spectrogram specification that contradicts itself
    ├── AugmentationError        an augmentation that cannot be applied to a clip
    ├── CorpusError              an invalid corpus folder, clip table or label scheme
    │   └── SplitError           a protocol that cannot be applied to the clips
    ├── DownloadError            a download that failed or does not match its checksum
    ├── RenderError              a rendering that cannot start or continue
    ├── WeightsError             pretrained weights that cannot be fetched or do not fit the backbone
    ├── CheckpointError          a checkpoint folder that is missing, damaged or of the wrong kind
    ├── TrainingError            a fine-tuning run that cannot start or continue
    ├── EvaluationError          clips that a checkpoint cannot be evaluated on, or a study that contradicts itself
    ├── FeatureError             features that cannot be extracted from the clips, or with the installed packages
    ├── PredictionError          input without anything to predict, or invalid prediction settings
    │   └── ExportError          a network that cannot be exported, or whose export computes different values
    └── WorkerError              a worker process that was killed

A message names the file or value at fault and ends with a way out.
"""


class SpectroError(Exception):
    """Base of every error that spectro raises on purpose."""


class AudioError(SpectroError):
    """A recording cannot be used; the message names the file and the reason."""


class AudioFormatError(AudioError):
    """A file is not a recording, or is truncated."""


class AudioLengthError(AudioError):
    """A recording is longer than allowed."""


class ImageError(SpectroError):
    """A PNG is not a picture of the expected spec."""


class ImageFormatError(ImageError):
    """A file is not a complete PNG."""


class SpecError(SpectroError, ValueError):
    """A spectrogram specification contradicts itself; the message names the fields."""


class AugmentationError(SpectroError):
    """An augmentation cannot be applied to a clip."""


class CorpusError(SpectroError):
    """A corpus folder, a clip table or a label scheme is invalid."""


class SplitError(CorpusError):
    """A protocol cannot be applied to the clips."""


class DownloadError(SpectroError):
    """A download failed or does not match its checksum."""


class RenderError(SpectroError):
    """A rendering cannot start or continue."""


class WeightsError(SpectroError):
    """Pretrained weights cannot be fetched or do not fit the backbone."""


class CheckpointError(SpectroError):
    """A checkpoint folder is missing, damaged or of the wrong kind."""


class TrainingError(SpectroError):
    """A fine-tuning run cannot start or continue."""


class EvaluationError(SpectroError):
    """A checkpoint cannot be evaluated on the clips, or a study contradicts itself."""


class FeatureError(SpectroError):
    """Features cannot be extracted from the clips, or not with the installed packages."""


class PredictionError(SpectroError):
    """The input has nothing to predict, or the settings are invalid."""


class ExportError(PredictionError):
    """A network cannot be exported, or its export computes different values."""


class WorkerError(SpectroError):
    """A worker process was killed; the message says what to do."""
