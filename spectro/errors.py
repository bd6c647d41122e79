"""Every error that spectro raises, drawn as one tree.

    SpectroError                 anything that spectro can name; its text says what is wrong and the way out
    ├── AudioError               a recording that cannot be used: unreadable, empty, silent, too long, ...
    │   ├── AudioFormatError     not a recording at all, or one that breaks off
    │   └── AudioLengthError     longer than allowed
    ├── ImageError               a PNG that is not a picture of the expected spec
    │   └── ImageFormatError     not a whole PNG
    ├── SpecError                a spectrogram specification that contradicts itself
    ├── AugmentationError        an augmentation that cannot be applied to this clip
    ├── CorpusError              a corpus folder, clip table or label scheme that does not fit
    │   └── SplitError           a protocol that cannot be applied to these clips
    ├── DownloadError            a download that failed or did not match its checksum
    ├── RenderError              a rendering that cannot start or go on
    ├── WeightsError             pretrained weights that cannot be fetched or do not fit the backbone
    ├── CheckpointError          a checkpoint folder that is missing, damaged or of another kind
    ├── TrainingError            a fine-tuning that cannot start or go on
    ├── EvaluationError          clips that this checkpoint cannot be evaluated on, or a study that contradicts itself
    ├── FeatureError             features that cannot be had of these clips, or not with what is installed
    ├── PredictionError          input that cannot be predicted at all
    │   └── ExportError          a network that cannot be exported, or whose export computes something else
    └── WorkerError              a process of the work that was killed

Messages name the file or the value at fault, and end with what to do about it.
"""


class SpectroError(Exception):
    """Base of every error that spectro raises on purpose."""


class AudioError(SpectroError):
    """A recording cannot be used; the text names the file and the reason."""


class AudioFormatError(AudioError):
    """A file is not a recording at all, or breaks off."""


class AudioLengthError(AudioError):
    """A recording is longer than allowed."""


class ImageError(SpectroError):
    """A PNG is not a picture of the expected spec."""


class ImageFormatError(ImageError):
    """A file is not a whole PNG."""


class SpecError(SpectroError, ValueError):
    """A spectrogram specification contradicts itself; the text says which fields."""


class AugmentationError(SpectroError):
    """An augmentation cannot be applied to this clip."""


class CorpusError(SpectroError):
    """A corpus folder, a clip table or a label scheme does not fit."""


class SplitError(CorpusError):
    """A protocol cannot be applied to these clips."""


class DownloadError(SpectroError):
    """A download failed or did not match its checksum."""


class RenderError(SpectroError):
    """A rendering cannot start or go on."""


class WeightsError(SpectroError):
    """Pretrained weights cannot be fetched or do not fit the backbone."""


class CheckpointError(SpectroError):
    """A checkpoint folder is missing, damaged or of another kind."""


class TrainingError(SpectroError):
    """A fine-tuning cannot start or go on."""


class EvaluationError(SpectroError):
    """A checkpoint cannot be evaluated on these clips."""


class FeatureError(SpectroError):
    """Features cannot be had of these clips, or not with what is installed."""


class PredictionError(SpectroError):
    """Nothing in the input can be predicted."""


class ExportError(PredictionError):
    """A network cannot be exported, or its export computes something else."""


class WorkerError(SpectroError):
    """A process that worked for this one was killed; the text says what to do."""
