"""Learning curves: progress while training, `curves.csv` after every epoch, `curves.png` at the end."""

import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
from tqdm import tqdm

from spectro.files import write_bytes

COLUMNS = ("epoch", "train_loss", "valid_loss", "valid_uar", "valid_wa", "valid_f1", "learning_rate", "seconds")


class Curves(pl.Callback):
    """Shows progress, and writes `curves.csv`, a row an epoch; its rows are part of the state that resuming restores.

    Args:
        out: folder of the file.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._rows: list[dict[str, float]] = []
        self._started = 0.0
        self._progress: tqdm[Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far."""
        return {"rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the rows of the run that is resumed."""
        self._rows = list(state_dict["rows"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the progress bar, at the step that a resumed run has come to."""
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
        """Write and print the epoch's row."""
        values = {name: float(trainer.callback_metrics[name]) for name in COLUMNS if name in trainer.callback_metrics}
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
    """Draw the learning curves, with the chosen epoch marked, to a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    for name, axes, label in (
        ("train_loss", losses, "training (masked, mixed)"),
        ("valid_loss", losses, "validation"),
        ("valid_uar", scores, "UAR"),
        ("valid_wa", scores, "WA"),
    ):
        axes.plot(curves["epoch"], curves[name], label=label)
    for axes, title in ((losses, "cross-entropy"), (scores, "validation speakers")):
        axes.axvline(chosen, color="0.5", linestyle=":", label="chosen epoch")
        axes.set(xlabel="epoch", title=title)
        axes.legend()
    scores.set_ylim(0, 1)
    figure.savefig(path, dpi=120)
