"""What can be chosen in a fine-tuning."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from spectro.corpora.splits import TrainOn
from spectro.errors import TrainingError
from spectro.model.metadata import COLDEST, HOTTEST
from spectro.train.data import Balance, Copies
from spectro.train.masking import MaskingSettings
from spectro.train.module import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Fine-tune an ImageNet backbone on rendered pictures, with whole speakers held out.

    Run it again after an interruption: it goes on from the last whole epoch, to the same result.

    Args:
        index: folder of a rendering.
        backbone: mobilenet, vgg16, vgg19, inceptionv3, or any timm name.
        weights: auto fetches the published ImageNet weights; none starts from random ones; or a file (.safetensors, or
            a state dict with timm's or torchvision's names) or a checkpoint folder of ours.
        out: folder for the checkpoint; null for checkpoints/BACKBONE-NAME_OF_INDEX-foldN, or -all with train_on all.
        labels: label scheme: emotion, emotion5, valence, gender, emotion-gender, emotion5-gender.
        protocol: how speakers are split: luna-jimenez, emobox (both for RAVDESS), group-kfold, loso, or random-leaky,
            which mixes speakers as tutorials do and says so, or random-leaky-copies, where copies of test clips train.
        fold: fold of the protocol, from 0.
        valid_speakers: speakers that validate, in place of the protocol's: the more there are, the better can designs
            be told apart, and the fewer train.
        train: how the network is trained.
        masking: SpecAugment on training pictures.
        mask: whether training pictures are masked and warped at all.
        batch_size: pictures a batch.
        copies: one: an epoch sees every training clip once, as one of its rendered copies; all: every copy; none:
            untouched clips only.
        balance: sampling draws labels equally often; loss weighs rare labels more; prior lets the loss account for
            how rare they are, so that the network itself takes all for equally likely; none does nothing of this.
        hidden: width of a second dense layer in the head; 0 for none.
        dropout: share of features dropped before each dense layer.
        ema: decay of an exponential moving average of the weights, which is then what is validated and kept; 0 for
            none.
        monitor: what the epoch is chosen by, on validation speakers: valid_uar (highest) or valid_loss (lowest); last
            chooses none, so that they tell of the design alone.
        patience: epochs without improvement after which training stops; 0 for never.
        train_on: valid trains on the protocol's validation speakers too, for all epochs, once these are settled; all
            on its test speakers as well, for a checkpoint that is to be used and that this corpus cannot measure.
        temperature: what logits are divided by where no validation speakers are left to fit it on.
        estimate: table of a study that measured on new speakers what is trained here on all: the card tells its test
            figures as an estimate.
        estimate_of: name of the system in that table.
        test: whether test speakers are measured; false while designs are compared.
        seed: seed of all that is random.
        precision: auto takes bfloat16 where the processor or GPU computes with it, else float32.
        dtype: kind of number that the checkpoint keeps its weights as; the figures are those of what is kept.
        accelerator: Lightning's: auto, cpu, gpu, ...
        devices: how many devices; auto for all.
        strategy: how several devices share the work, Lightning's: auto, ddp, fsdp, ...
        workers: processes that read pictures; -1 for as many as help.
        overwrite: start anew over a run with other settings, instead of refusing.
    """

    LATER: ClassVar[dict[str, Any]] = {"train_on": "train", "valid_speakers": []}  # see `spectro.identity`

    index: Path = Path("data/images/synthetic")
    backbone: str = "mobilenet"
    weights: str = "auto"
    out: Path | None = None
    labels: str = "emotion"
    protocol: str = "group-kfold"
    fold: int = 0
    valid_speakers: list[str | int] = field(default_factory=list)
    train: TrainingSettings = field(default_factory=TrainingSettings)
    masking: MaskingSettings = field(default_factory=MaskingSettings)
    mask: bool = True
    batch_size: int = 32
    copies: Copies = "none"
    balance: Balance = "none"
    hidden: int = 0
    dropout: float = 0.2
    ema: float = 0.0
    monitor: Literal["valid_uar", "valid_loss", "last"] = "valid_uar"
    patience: int = 0
    train_on: TrainOn = "train"
    temperature: float = 1.0
    estimate: Path | None = None
    estimate_of: str = ""
    test: bool = True
    seed: int = 0
    precision: str = "auto"
    dtype: Literal["float32", "float16"] = "float32"
    accelerator: str = "auto"
    devices: str = "auto"
    strategy: str = "auto"
    workers: int = -1
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, low in (("batch_size", 1), ("hidden", 0), ("patience", 0), ("seed", 0), ("workers", -1)):
            if getattr(self, name) < low:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must be {low} or more")
        for name in ("dropout", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must lie between 0 and below 1")

        if self.patience and self.monitor == "last":
            raise TrainingError("patience needs a figure to wait for: monitor valid_uar or valid_loss")
        if self.valid_speakers and not self.validates:
            raise TrainingError(f"train_on {self.train_on} leaves nobody to validate; leave valid_speakers out")
        if self.estimate is not None and self.train_on != "all":
            raise TrainingError("an estimate is told of checkpoints that are trained on all speakers: train_on all")
        if self.estimate_of and self.estimate is None:
            raise TrainingError("estimate_of names a system of a table: name the table with estimate")
        if self.seed >= 2**32:
            raise TrainingError(f"seed is {self.seed}; it must be below {2**32}")
        if not COLDEST <= self.temperature <= HOTTEST:
            raise TrainingError(f"temperature is {self.temperature}; it must lie between {COLDEST} and {HOTTEST:g}")

    @property
    def validates(self) -> bool:
        """Whether validation speakers are held out, and choose the epoch."""
        return self.train_on == "train"

    @property
    def chooses(self) -> bool:
        """Whether an epoch is chosen; else it is the last."""
        return self.validates and self.monitor != "last"

    @property
    def folder(self) -> Path:
        """Where the checkpoint goes."""
        part = "all" if self.train_on == "all" else f"fold{self.fold}"
        return self.out or Path("checkpoints") / f"{self.backbone}-{self.index.name}-{part}"
