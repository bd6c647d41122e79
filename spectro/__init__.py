"""spectro recognises emotion in speech from spectrogram pictures.

    >>> import spectro
    >>> predictor = spectro.load()                       # the shipped checkpoint, or load("checkpoints/NAME")
    >>> predictor.predict_wav("clip.wav").label
    'happy'
    >>> predictor.predict_image("clip.png").probabilities["happy"]
    0.93
    >>> for row in predictor.predict_folder("calls/"): ...
    >>> for segment in predictor.timeline("call.wav"): ...
    >>> spectro.explain(predictor, "clip.wav").heat.shape
    (128, 224)

Everything here is imported on first use: `import spectro` alone imports neither torch nor librosa.
Only the telemetry of libraries is switched off at once (`spectro.privacy`).
"""

import importlib
from typing import TYPE_CHECKING, Any

from spectro.privacy import report_nothing

if TYPE_CHECKING:
    from spectro.errors import SpectroError
    from spectro.picture.spec import SpectrogramSpec
    from spectro.predict.default import predict_folder, predict_image, predict_wav
    from spectro.predict.explain import explain
    from spectro.predict.predictor import Prediction, Predictor, load
    from spectro.predict.timeline.windows import WindowSettings

report_nothing()  # before any library with telemetry is imported

__version__ = "0.2.0"

__all__ = [
    "Prediction",
    "Predictor",
    "SpectroError",
    "SpectrogramSpec",
    "WindowSettings",
    "explain",
    "load",
    "predict_folder",
    "predict_image",
    "predict_wav",
]

_HOMES = {
    "Prediction": "spectro.predict.predictor",
    "Predictor": "spectro.predict.predictor",
    "SpectroError": "spectro.errors",
    "SpectrogramSpec": "spectro.picture.spec",
    "WindowSettings": "spectro.predict.timeline.windows",
    "explain": "spectro.predict.explain",
    "load": "spectro.predict.predictor",
    "predict_folder": "spectro.predict.default",
    "predict_image": "spectro.predict.default",
    "predict_wav": "spectro.predict.default",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'spectro' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
