"""Fine-tuning: an image index and a backbone in, a checkpoint folder out.

The epoch is chosen on validation speakers; test speakers are measured once, at the end. A run can be killed at any
moment and started again with the same settings: it goes on from the last whole epoch and ends with the same weights.

In the output folder: the checkpoint (`model.safetensors`, `spectro.json`, `card.md`), `curves.csv` and `curves.png`,
and `training/` with what resuming needs and TensorBoard's events.
"""

import json
import logging
import shutil
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import scipy.optimize
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.callbacks.weight_averaging import EMAWeightAveraging
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

from spectro.corpora import find
from spectro.corpora.splits import voices
from spectro.errors import TrainingError
from spectro.files import printable, read_json, write_json
from spectro.learn import checkpoint as checkpoints
from spectro.learn.backbones import SpectrogramNet, load_weights, weights_identity
from spectro.learn.checkpoint import Checkpoint
from spectro.learn.classifier import Classifier, TrainingSettings, calibrate, freeze
from spectro.learn.curves import Curves, plot_curves
from spectro.learn.datamodule import Balance, Copies, PictureDataModule
from spectro.learn.figures import confusion, figures
from spectro.learn.masking import MaskingSettings

TRAINING, RUN_FILE = "training", "settings.json"


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Fine-tune an ImageNet backbone on rendered pictures, with whole speakers held out.

    Run it again after an interruption: it goes on from the last whole epoch, to the same result.

    Args:
        index: folder of a rendering.
        backbone: mobilenet, vgg16, vgg19, inceptionv3, or any timm name.
        weights: auto fetches the published ImageNet weights; none starts from random ones; or a file (.safetensors, or
            a state dict with timm's or torchvision's names) or a checkpoint folder of ours.
        out: folder for the checkpoint; null for checkpoints/BACKBONE-NAME_OF_INDEX.
        labels: label scheme: emotion, emotion5, valence, gender, emotion-gender, emotion5-gender.
        protocol: how speakers are split: luna-jimenez, emobox (both for RAVDESS), group-kfold, loso, or random-leaky,
            which mixes speakers as tutorials do and says so.
        fold: fold of the protocol, from 0.
        train: how the network is trained.
        masking: SpecAugment on training pictures.
        mask: whether training pictures are masked and warped at all.
        batch_size: pictures a batch.
        copies: one: an epoch sees every training clip once, as one of its rendered copies; all: every copy; none:
            untouched clips only.
        balance: sampling draws labels equally often; loss weighs rare labels more; none does neither.
        hidden: width of a second dense layer in the head; 0 for none.
        dropout: share of features dropped before each dense layer.
        ema: decay of an exponential moving average of the weights, which is then what is validated and kept; 0 for
            none.
        monitor: what the epoch is chosen by, on validation speakers: valid_uar (highest) or valid_loss (lowest).
        patience: epochs without improvement after which training stops; 0 for never.
        seed: seed of all that is random.
        precision: auto takes bfloat16 where the processor or GPU computes with it, else float32.
        dtype: kind of number that the checkpoint keeps its weights as; the figures are those of what is kept.
        accelerator: Lightning's: auto, cpu, gpu, ...
        devices: how many devices; auto for all.
        strategy: how several devices share the work, Lightning's: auto, ddp, fsdp, ...
        workers: processes that read pictures; -1 for as many as help.
        overwrite: start anew over a run with other settings, instead of refusing.
    """

    index: Path = Path("data/images/synthetic")
    backbone: str = "mobilenet"
    weights: str = "auto"
    out: Path | None = None
    labels: str = "emotion"
    protocol: str = "group-kfold"
    fold: int = 0
    train: TrainingSettings = field(default_factory=TrainingSettings)
    masking: MaskingSettings = field(default_factory=MaskingSettings)
    mask: bool = True
    batch_size: int = 32
    copies: Copies = "none"
    balance: Balance = "none"
    hidden: int = 0
    dropout: float = 0.2
    ema: float = 0.0
    monitor: Literal["valid_uar", "valid_loss"] = "valid_uar"
    patience: int = 0
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

    @property
    def folder(self) -> Path:
        """Where the checkpoint goes."""
        return self.out or Path("checkpoints") / f"{self.backbone}-{self.index.name}"


def finetune(settings: FinetuneSettings) -> Checkpoint:
    """Fine-tune a backbone, and write its checkpoint folder.

    Returns:
        the checkpoint of the epoch that was best on the validation speakers.

    Raises:
        TrainingError: the output folder holds another run, or the settings contradict each other.
        RenderError, CorpusError, WeightsError: the pictures, labels, split or weights cannot be had.
    """
    out, data = settings.folder, _data(settings)
    pl.seed_everything(settings.seed, verbose=False)
    net = SpectrogramNet(settings.backbone, len(data.labels), hidden=settings.hidden, dropout=settings.dropout)
    net.check_size(data.spec.height, data.spec.width)
    identity = _identity(settings, data)
    resume = _find_run(out, identity, settings.overwrite)
    weights = load_weights(net, settings.weights)
    net.to(memory_format=torch.channels_last)
    model = Classifier(net, settings.train, settings.seed, data.class_weights())
    with warnings.catch_warnings():
        _silence()
        trainer, best = _trainer(settings, out)
        if resume is None and trainer.is_global_zero:
            shutil.rmtree(out / TRAINING, ignore_errors=True)
            write_json(out / TRAINING / RUN_FILE, identity)
        _fit(trainer, model, data, resume)
        if not trainer.is_global_zero:
            return Checkpoint(net=net, labels=data.labels, spec=data.spec)
        origin = _describe(settings, data, weights, identity)
        return _finish(settings, out, data, model, Path(best.best_model_path), origin)


def _fit(trainer: pl.Trainer, model: Classifier, data: PictureDataModule, resume: Path | None) -> None:
    if resume is not None:
        state = torch.load(resume, map_location="cpu", weights_only=False)  # written by this run
        data.first_epoch = len(state["callbacks"][Curves.__qualname__]["rows"])
    try:
        trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=False if resume else None)
    except SystemExit as error:
        raise KeyboardInterrupt from error  # Lightning exits when it is interrupted


def _data(settings: FinetuneSettings) -> PictureDataModule:
    workers = settings.workers if settings.workers >= 0 else min(4, (torch.get_num_threads() + 1) // 4)
    return PictureDataModule(
        settings.index,
        label_scheme=settings.labels,
        protocol=settings.protocol,
        fold=settings.fold,
        batch_size=settings.batch_size,
        copies=settings.copies,
        balance=settings.balance,
        masking=settings.masking if settings.mask else None,
        seed=settings.seed,
        workers=workers,
    )


def _identity(settings: FinetuneSettings, data: PictureDataModule) -> dict[str, Any]:
    """Return what a run's result depends on, as JSON values: a run is resumed if these are the same."""
    free = ("out", "overwrite", "workers", "index", "devices", "accelerator", "strategy")
    fields = {key: value for key, value in asdict(settings).items() if key not in free}
    fields["weights"] = weights_identity(settings.weights)
    fields |= {"spec": data.spec.fingerprint, "data": data.fingerprint}
    identity: dict[str, Any] = json.loads(json.dumps(fields))
    return identity


def _find_run(out: Path, identity: dict[str, Any], overwrite: bool) -> Path | None:
    """Return the state to resume from, if the folder holds one of this run; refuse to mix two runs."""
    path, last = out / TRAINING / RUN_FILE, out / TRAINING / "last.ckpt"
    if last.exists() and read_json(path) == identity:
        return last
    if not overwrite and (last.exists() or (out / checkpoints.DESCRIPTION_FILE).exists()):
        raise TrainingError(
            f"{printable(out)}: holds a run with other settings; choose another --out, or --overwrite true"
        )
    return None


def _trainer(settings: FinetuneSettings, out: Path) -> tuple[pl.Trainer, ModelCheckpoint]:
    mode = "max" if settings.monitor == "valid_uar" else "min"
    folder = out / TRAINING
    best = ModelCheckpoint(folder, filename="best", monitor=settings.monitor, mode=mode, enable_version_counter=False)
    last = ModelCheckpoint(folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
    callbacks: list[pl.Callback] = [Curves(out), best, last]
    if settings.patience > 0:
        callbacks.insert(0, ResumableEarlyStopping(settings.monitor, mode=mode, patience=settings.patience))
    if settings.ema > 0:
        callbacks.insert(0, EMAWeightAveraging(decay=settings.ema))
    try:
        trainer = pl.Trainer(
            max_epochs=settings.train.epochs,
            accelerator=settings.accelerator,
            devices=settings.devices,
            strategy=settings.strategy,
            precision=_precision(settings),
            callbacks=callbacks,
            logger=TensorBoardLogger(folder, name="", version=""),
            default_root_dir=folder,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            enable_model_summary=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
            deterministic="warn",
        )
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise TrainingError(f"accelerator, devices, strategy or precision: {error}") from error
    return trainer, best


class ResumableEarlyStopping(EarlyStopping):
    """Lightning's early stopping, which also stops a run that is resumed after it had stopped."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once if the restored state says that the run is over."""
        trainer.should_stop = self.wait_count >= self.patience


def _precision(settings: FinetuneSettings) -> Any:
    """Return Lightning's name of the precision; `auto` is bfloat16 where the hardware computes with it."""
    if settings.precision != "auto":
        return settings.precision
    if settings.accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16-mixed" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "32-true"


def _describe(
    settings: FinetuneSettings, data: PictureDataModule, weights: str, identity: dict[str, Any]
) -> dict[str, Any]:
    """Return where the checkpoint comes from, as far as it is known before it is measured."""
    corpora = [find(name) for name in data.corpora]
    split = data.split.describe()
    if heard := _heard_before(Path(settings.weights), data):
        split["leak"] = f"the starting weights were trained on the test speakers {', '.join(heard)}"
    return {
        "weights": weights,
        "data": {
            "title": ", ".join(corpus.title for corpus in corpora),
            "corpora": list(data.corpora),
            "licence": ", ".join(dict.fromkeys(corpus.licence for corpus in corpora)),
            "homepage": ", ".join(corpus.homepage for corpus in corpora if corpus.homepage),
            "labels": settings.labels,
            "training_pictures": len(data.rows["train"]),
        },
        "split": split,
        "training": {"seed": settings.seed, "settings": identity},
        "versions": checkpoints.versions(),
    }


def _heard_before(weights: Path, data: PictureDataModule) -> list[str]:
    """Return the test speakers that a checkpoint of ours, taken as starting weights, was trained or chosen on."""
    before = read_json(weights / checkpoints.DESCRIPTION_FILE)
    if not isinstance(before, dict) or not {"data", "split"} <= set(before):
        return []
    if not {voices(name) for name in before["data"]["corpora"]} & {voices(name) for name in data.corpora}:
        return []
    speakers = before["split"]["speakers"]
    return [name for name in data.split.speakers["test"] if name in {*speakers["train"], *speakers["valid"]}]


def _finish(
    settings: FinetuneSettings,
    out: Path,
    data: PictureDataModule,
    model: Classifier,
    best: Path,
    origin: dict[str, Any],
) -> Checkpoint:
    """Take the best epoch's weights as they will be kept, calibrate them, measure, and write the folder."""
    state = torch.load(best, map_location="cpu", weights_only=False)  # written by this run
    model.load_state_dict(state["state_dict"])
    net = model.net.cpu()
    freeze(net, settings.train, int(state["epoch"]))  # not yet done where a finished run is only written again
    calibrate(net, (pictures for pictures, _targets in data.calibration_dataloader()))
    net.load_state_dict({name: checkpoints.kept(value, settings.dtype) for name, value in net.state_dict().items()})
    net.eval()
    valid, test = (predict_part(net, loader) for loader in (data.val_dataloader(), data.test_dataloader()))
    curves, epoch = pd.read_csv(out / "curves.csv"), int(state["epoch"])
    origin["training"] |= {"epoch": epoch, "seconds": round(float(curves["seconds"].sum()), 1)}
    origin["metrics"] = {"valid": measure(*valid), "test": measure(*test)}
    checkpoint = Checkpoint(
        net=net, labels=data.labels, spec=data.spec, temperature=fit_temperature(*valid), origin=origin
    )
    checkpoints.save(checkpoint, out, dtype=settings.dtype)
    plot_curves(curves, epoch, out / "curves.png")
    return checkpoint


@torch.inference_mode()
def predict_part(net: SpectrogramNet, loader: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits float32 (clips, labels) and targets int64 (clips,) of a part, in float32 arithmetic."""
    logits, targets = zip(*((net(pictures), wanted) for pictures, wanted in loader), strict=True)
    return torch.cat(logits), torch.cat(targets)


def measure(logits: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Return `uar`, `wa`, `f1` and the number of `clips`."""
    found = figures(confusion(targets.numpy(), logits.argmax(1).numpy(), logits.shape[1]))
    return {"clips": len(targets), "uar": round(found.uar, 4), "wa": round(found.wa, 4), "f1": round(found.f1, 4)}


def fit_temperature(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the temperature that makes the targets most likely (Guo et al., ICML 2017), between 0.05 and 20."""

    def loss(log_temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits.double() / np.exp(log_temperature), targets))

    fitted = scipy.optimize.minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return round(float(np.exp(fitted.x)), 4)


def _silence() -> None:
    """Hide what Lightning says of its own code, and of what is meant: few reading processes, resuming in place."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*isinstance.treespec, LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def run(settings: FinetuneSettings) -> int:
    """Run the verb; returns its exit code."""
    checkpoint = finetune(settings)
    if "metrics" not in checkpoint.origin:
        return 0  # one of several processes; the first one reports
    split, figures = checkpoint.origin["split"], checkpoint.origin["metrics"]
    print(f"protocol {split['protocol']}, fold {split['fold']}, epoch {checkpoint.origin['training']['epoch']} chosen")
    for part, values in figures.items():
        speakers = ", ".join(split["speakers"][part])
        print(
            f"{part:>5} speakers {speakers}: UAR {values['uar']:.3f}, WA {values['wa']:.3f}, F1 {values['f1']:.3f} "
            f"({values['clips']} clips)"
        )
    if split["leak"]:
        print(f"these figures leak: {split['leak']}")
    print(f"checkpoint in {settings.folder}")
    return 0
