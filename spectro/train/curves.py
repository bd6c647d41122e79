"""Learning curves: progress during training, `curves.csv` after every epoch, `curves.png` at the end."""

import math
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
from tqdm import tqdm

from spectro.errors import TrainingError
from spectro.files import write_bytes

COLUMNS = ("epoch", "train_loss", "valid_loss", "valid_uar", "valid_wa", "valid_f1", "learning_rate", "seconds")


class Curves(pl.Callback):
    """Shows progress, and writes `curves.csv`, one row per epoch; resuming restores its rows from the state.

    Args:
        out: folder of the file.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._rows: list[dict[str, float]] = []
        self._started = 0.0
        self._progress: tqdm[Any] | None = None
        self.begun = False
        """Whether training has begun: the state of a resumed run has been restored."""

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far."""
        return {"rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the rows of the run that is resumed."""
        self._rows = list(state_dict["rows"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the progress bar, at the step where a resumed run continues."""
        self.begun = True
        total, hidden = int(trainer.estimated_stepping_batches), not trainer.is_global_zero
        self._progress = tqdm(
            desc="training", unit="batch", total=total, initial=trainer.global_step, disable=hidden, leave=False
        )

    def on_train_batch_end(self, *_: Any) -> None:
        """Move the progress bar."""
        if self._progress is not None:
            self._progress.update()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the progress bar."""
        if self._progress is not None:
            self._progress.close()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write and print the epoch's row.

        Raises:
            TrainingError: the loss is not finite; the last state that is kept is that of the epoch before.
        """
        values = {name: float(trainer.callback_metrics[name]) for name in COLUMNS if name in trainer.callback_metrics}
        if not math.isfinite(values.get("train_loss", 0.0)):
            raise TrainingError(
                f"the training loss of epoch {trainer.current_epoch + 1} is {values['train_loss']}: training has "
                "diverged to numbers that are not finite; start again with a lower --train.learning_rate, or with "
                "--precision 32-true"
            )
        row = {
            "epoch": trainer.current_epoch,
            **{name: round(value, 5) for name, value in values.items()},
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "seconds": round(time.perf_counter() - self._started, 2),
        }
        self._rows = [*self._rows, row]
        if trainer.is_global_zero:
            table = pd.DataFrame(self._rows, columns=list(COLUMNS))
            write_bytes(self._out / "curves.csv", table.to_csv(index=False).encode())
            shown = (("train loss", "train_loss"), ("valid loss", "valid_loss"), ("valid UAR", "valid_uar"))
            figures = "".join(f"{label} {row[name]:.3f}, " for label, name in shown if name in row)
            tqdm.write(f"epoch {row['epoch'] + 1}/{trainer.max_epochs}: {figures}{row['seconds']:.1f} s")


def plot_curves(curves: pd.DataFrame, chosen: int, path: Path) -> None:
    """Plot the learning curves to a PNG; the kept epoch is marked if there are validation speakers."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels = {
        "cross-entropy": {"train_loss": "training (masked, mixed)", "valid_loss": "validation"},
        "validation speakers": {"valid_uar": "UAR", "valid_wa": "WA"},
    }
    if not (validated := bool(curves["valid_loss"].notna().any())):
        panels = {"cross-entropy": {"train_loss": "training (masked, mixed)"}}
    figure = Figure(figsize=(4 * len(panels), 3.5), layout="constrained")
    for axes, (title, columns) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, label in columns.items():
            axes.plot(curves["epoch"], curves[name], label=label)
        if validated:
            axes.axvline(chosen, color="0.5", linestyle=":", label="epoch kept")
        axes.set(xlabel="epoch, from 0", title=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if "valid_uar" in columns:
            axes.set_ylim(0, 1)
        axes.legend()
    figure.savefig(path, dpi=120)
