"""The settings of a fine-tuning run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from spectro.corpora.splits import TrainOn
from spectro.errors import TrainingError
from spectro.model.metadata import COLDEST, HOTTEST
from spectro.schema import check_least
from spectro.train.conditions import ConditionSettings
from spectro.train.data import Balance, Copies
from spectro.train.masking import MaskingSettings
from spectro.train.module import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Fine-tune a network on rendered pictures, with whole speakers held out.

    Run it again after an interruption: it continues from the last complete epoch and ends with the same result.

    Args:
        index: folders of renderings with the same spec: one, or one per corpus. The loss of a clip ignores labels that
            its corpus does not have.
        backbone: mobilenet, vgg16, vgg19, inceptionv3, mn04, yamnet, whisper_tiny, cnn1d, lstm, gru, or any timm name.
        weights: auto fetches the published ImageNet weights; mn04_as fetches weights trained on AudioSet (`spectro
            weights` lists such names); none starts from random weights; otherwise a file (.safetensors, or a state dict
            with timm's or torchvision's names) or a checkpoint folder.
        keep_head: whether the output layer, too, starts from `weights`, a checkpoint, for the labels that both have.
        sounds: folders of renderings of sounds without speech, with the same spec and one class per source; the
            checkpoint then includes a speech detector.
        remember: weight of a second loss, with which the network keeps telling speech from `sounds`, as its starting
            weights do; its second output is then the speech detector. For weights trained on AudioSet; 0 for none.
        unheard_sounds: like `sounds`, but not trained on: the card tells how many of them get an emotion. For
            `remember`; without it, each source of `sounds` is left out in turn.
        out: folder for the checkpoint; null for checkpoints/BACKBONE-NAME_OF_INDEX-foldN, or -all with train_on all.
        labels: label scheme: emotion, emotion5, valence, gender, emotion-gender, emotion5-gender.
        protocol: how speakers are split: luna-jimenez, emobox (both split RAVDESS; all other corpora only train),
            group-kfold or loso; cross-corpus tests a corpus that is left out of training; random-leaky mixes speakers,
            as tutorials do, and reports the leak; random-leaky-copies also trains on copies of test clips.
        fold: fold of the protocol, from 0; for cross-corpus the name of the corpus to test.
        valid_speakers: validation speakers, instead of the protocol's. More of them compare designs more reliably, but
            leave fewer to train on.
        train: how the network is trained.
        masking: SpecAugment on training pictures.
        mask: whether training pictures are masked and warped.
        conditions: recording conditions simulated on training pictures: microphone, line, noise, room. Off unless
            conditions.probability is above 0.
        batch_size: pictures per batch, over all devices.
        copies: one: each epoch uses every training clip once, as one of its rendered copies; all: every copy; none:
            untouched clips only.
        balance: sampling draws all labels equally often; loss gives rare labels more weight; prior adjusts the loss for
            label frequencies, so that the network itself treats labels as equally likely; none does nothing.
        votes: weight of listeners' votes in a training clip's target, from 0 to 1; its label has the rest. For corpora
            with votes (CREMA-D, or columns votes_EMOTION of a CSV); clips without votes keep their label.
        teachers: checkpoint folders whose probabilities become part of the targets (knowledge distillation); those of
            several are averaged. A teacher has the same label scheme, and may read pictures of another spec.
        teacher_share: weight of the teachers' probabilities in a training clip's target, above 0 and up to 1; its label
            (with votes, if any) has the rest.
        corpus_temperature: corpora are sampled in proportion to their number of clips to this power, so that a large
            one does not dominate the others; 1 uses every clip once.
        epoch_clips: training pictures per epoch; 0 for one per clip.
        hidden: width of a second dense layer in the head; 0 for none.
        dropout: share of features dropped before each dense layer.
        ema: decay of an exponential moving average of the weights; the average is validated and kept. 0 for none.
        monitor: criterion for the epoch, on validation speakers: valid_uar (highest) or valid_loss (lowest). last keeps
            the last epoch.
        patience: stop after this many epochs without improvement; 0 for never.
        train_on: valid also trains on the validation speakers, once the design is settled; all also trains on the test
            speakers, for a checkpoint to deploy, which this corpus cannot evaluate.
        temperature: softmax temperature if no validation speakers are left to fit it on.
        estimate: table of a study that evaluated the same recipe on new speakers; the card reports its test figures as
            an estimate. For train_on all.
        estimate_of: name of the system in that table.
        note: a sentence or two about the recordings, added to the card.
        test: evaluate on the test speakers; false while designs are compared.
        seed: random seed.
        precision: auto uses bfloat16 if the CPU or GPU supports it, otherwise float32.
        dtype: number format of the stored weights; figures are measured with the stored weights.
        accelerator: as in Lightning: auto, cpu, gpu, ...
        devices: number of devices on each machine; auto for all. On a CPU, a device is a process.
        nodes: number of machines. Start the same command on each, with MASTER_ADDR, MASTER_PORT and NODE_RANK set as
            Lightning expects.
        strategy: how devices share the work, as in Lightning: auto, ddp, fsdp, ...
        workers: processes that read pictures; -1 chooses by the number of CPU threads.
        overwrite: replace a run with other settings, instead of refusing to.
    """

    LATER: ClassVar[dict[str, Any]] = {
        "train_on": "train",
        "valid_speakers": [],
        "conditions": ConditionSettings(),
        "corpus_temperature": 1.0,
        "epoch_clips": 0,
        "votes": 0.0,
        "teachers": [],
        "teacher_share": 0.8,
        "remember": 0.0,
        "keep_head": False,
    }  # see `spectro.identity`

    index: Path | list[Path] = Path("data/images/synthetic")
    backbone: str = "mobilenet"
    weights: str = "auto"
    keep_head: bool = False
    sounds: list[Path] = field(default_factory=list)
    remember: float = 0.0
    unheard_sounds: list[Path] = field(default_factory=list)
    out: Path | None = None
    labels: str = "emotion"
    protocol: str = "group-kfold"
    fold: int | str = 0
    valid_speakers: list[str | int] = field(default_factory=list)
    train: TrainingSettings = field(default_factory=TrainingSettings)
    masking: MaskingSettings = field(default_factory=MaskingSettings)
    mask: bool = True
    conditions: ConditionSettings = field(default_factory=ConditionSettings)
    batch_size: int = 32
    copies: Copies = "none"
    balance: Balance = "none"
    votes: float = 0.0
    teachers: list[Path] = field(default_factory=list)
    teacher_share: float = 0.8
    corpus_temperature: float = 1.0
    epoch_clips: int = 0
    hidden: int = 0
    dropout: float = 0.2
    ema: float = 0.0
    monitor: Literal["valid_uar", "valid_loss", "last"] = "valid_uar"
    patience: int = 0
    train_on: TrainOn = "train"
    temperature: float = 1.0
    estimate: Path | None = None
    estimate_of: str = ""
    note: str = ""
    test: bool = True
    seed: int = 0
    precision: str = "auto"
    dtype: Literal["float32", "float16"] = "float32"
    accelerator: str = "auto"
    devices: str = "auto"
    nodes: int = 1
    strategy: str = "auto"
    workers: int = -1
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_least(self, TrainingError, batch_size=1, hidden=0, patience=0, seed=0, workers=-1, epoch_clips=0, nodes=1)
        if self.remember < 0:
            raise TrainingError(f"remember is {self.remember}; it must be 0 or more")
        if self.unheard_sounds and not self.remember:
            raise TrainingError("unheard_sounds is for remember; without it, each source of sounds is left out in turn")
        for name in ("dropout", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must lie between 0 and below 1")

        if not 0 <= self.votes <= 1:
            raise TrainingError(f"votes is {self.votes}; it must lie between 0 and 1")
        if not 0 <= self.teacher_share <= 1:
            raise TrainingError(f"teacher_share is {self.teacher_share}; it must lie between 0 and 1")
        if self.teachers and not self.teacher_share:
            raise TrainingError("teacher_share is 0, so the teachers have no effect: raise it, or name no teachers")
        if not self.indexes:
            raise TrainingError("index names no rendering")
        if not 0 <= self.corpus_temperature <= 1:
            raise TrainingError(f"corpus_temperature is {self.corpus_temperature}; it must lie between 0 and 1")
        if self.patience and self.monitor == "last":
            raise TrainingError("patience needs a figure to watch: set monitor to valid_uar or valid_loss")
        if self.valid_speakers and not self.validates:
            raise TrainingError(f"train_on {self.train_on} leaves no speakers for validation; remove valid_speakers")
        if self.estimate is not None and self.train_on != "all":
            raise TrainingError("estimate is for checkpoints that are trained on all speakers: set train_on to all")
        if self.estimate_of and self.estimate is None:
            raise TrainingError("estimate_of names a system of a table: give the table with estimate")
        if self.seed >= 2**32:
            raise TrainingError(f"seed is {self.seed}; it must be below {2**32}")
        if not COLDEST <= self.temperature <= HOTTEST:
            raise TrainingError(f"temperature is {self.temperature}; it must lie between {COLDEST} and {HOTTEST:g}")

    @property
    def indexes(self) -> list[Path]:
        """The folders of all renderings."""
        return self.index if isinstance(self.index, list) else [self.index]

    @property
    def validates(self) -> bool:
        """Whether validation speakers are held out to choose the epoch."""
        return self.train_on == "train"

    @property
    def chooses(self) -> bool:
        """Whether the epoch is chosen by a figure; if not, it is the last."""
        return self.validates and self.monitor != "last"

    @property
    def folder(self) -> Path:
        """The folder of the checkpoint."""
        part = "all" if self.train_on == "all" else f"fold{self.fold}" if isinstance(self.fold, int) else self.fold
        name = "-".join(["+".join(folder.name for folder in self.indexes), part])
        return self.out or Path("checkpoints") / f"{self.backbone}-{name}"
