"""Lightning's trainer, configured for fine-tuning: which epoch is kept, the state for resuming, and the hardware."""

import logging
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.callbacks.weight_averaging import EMAWeightAveraging
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

from spectro.errors import TrainingError
from spectro.train.curves import Curves
from spectro.train.settings import FinetuneSettings
from spectro.train.state import PlainStateIO

LOG = logging.getLogger("spectro")
BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
"""Names of instructions for bfloat16 among PyTorch's capabilities of a processor."""
TRAINING, LAST, BEST = "training", "last.ckpt", "best.ckpt"


def make_trainer(settings: FinetuneSettings, out: Path, curves: Curves) -> pl.Trainer:
    """Return a trainer that keeps the best and the last epoch.

    Args:
        settings: the run's settings.
        out: its output folder.
        curves: the callback that reports its progress.

    Raises:
        TrainingError: this machine lacks hardware that the settings require.
    """
    mode = "min" if settings.monitor == "valid_loss" else "max"
    folder, chooses = out / TRAINING, settings.chooses
    best = ModelCheckpoint(
        folder,
        filename=Path(BEST).stem,
        monitor=settings.monitor if chooses else None,  # None keeps the last epoch
        mode=mode,
        enable_version_counter=False,
    )
    last = ModelCheckpoint(folder, filename=Path(LAST).stem, enable_version_counter=False, save_on_train_epoch_end=True)
    callbacks: list[pl.Callback] = [curves, best, last]
    if settings.patience > 0 and chooses:
        callbacks.insert(0, ResumableEarlyStopping(settings.monitor, mode=mode, patience=settings.patience))
    if settings.ema > 0:
        callbacks.insert(0, EMAWeightAveraging(decay=settings.ema))
    try:
        return pl.Trainer(
            max_epochs=settings.train.epochs,
            limit_val_batches=1.0 if settings.validates else 0,
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            strategy=settings.strategy,
            precision=_precision(settings),
            callbacks=callbacks,
            plugins=[PlainStateIO()],
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


class ResumableEarlyStopping(EarlyStopping):
    """Lightning's early stopping, which also stops a resumed run that had already stopped early."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once if the restored state has used up its patience."""
        trainer.should_stop = self.wait_count >= self.patience


def _precision(settings: FinetuneSettings) -> Any:
    """Return Lightning's name of the precision; `auto` is bfloat16 if the hardware supports it.

    A processor without bfloat16 emulates it: a warning says so.
    """
    on_cuda = settings.accelerator != "cpu" and torch.cuda.is_available()
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if settings.precision == "auto":
        fast_here = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
        return "bf16-mixed" if (torch.cuda.is_bf16_supported() if on_cuda else fast_here) else "32-true"
    on_cpu = not on_cuda and settings.accelerator in ("cpu", "auto") and not torch.backends.mps.is_available()
    emulated = capabilities and not any(capabilities.get(name) for name in BFLOAT16)
    if settings.precision.startswith("bf16") and on_cpu and emulated:
        LOG.warning(
            "precision %s: this processor has no bfloat16 instructions, so training takes several times as long as in "
            "float32, which --precision auto would use",
            settings.precision,
        )
    return settings.precision


def silence() -> None:
    """Hide Lightning's warnings about its own code, and about what is intended: few workers, resuming in place."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*isinstance.treespec, LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message=message)
