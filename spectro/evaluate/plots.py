"""Plots of a report: confusion matrix, recall by label, UAR by speaker, reliability, and a gallery of clips."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
from matplotlib.figure import Figure

from spectro.files import write_bytes

DPI = 120
SHOWN = 3
"""Clips per label in a gallery: this many that were predicted correctly, and as many that were not."""
BLUE, GRAY = "#0072B2", "0.6"  # from the colour-blind-safe palette of Okabe & Ito (2008)


def confusion(report: dict[str, Any], path: Path) -> None:
    """Plot the confusion matrix of a report: shares of each true label, with counts."""
    labels, counts = list(report["labels"]), np.array(report["confusion"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.2 + 0.62 * len(labels)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="predicted", ylabel="true", title=_title(report))
    for row, column in np.ndindex(*counts.shape):
        if counts[row, column]:
            colour = "black" if shares[row, column] > 0.6 else "white"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=9)
    figure.colorbar(drawn, ax=axes, label="share of the true label", shrink=0.8)
    _save(figure, path)


def recall(report: dict[str, Any], path: Path) -> None:
    """Plot recall by label with intervals, and UAR by speaker."""
    labels = {name: values for name, values in report["labels"].items() if values["recall"]["value"] is not None}
    speakers = report["speakers"]
    figure = Figure(figsize=(10, 1.5 + 0.3 * max(len(labels), len(speakers))), layout="constrained")
    left, right = figure.subplots(1, 2)
    values = np.array([one["recall"]["value"] for one in labels.values()])
    edges = np.array([one["recall"]["interval"] for one in labels.values()], dtype=float)
    errors = np.abs(np.stack([values - edges[:, 0], edges[:, 1] - values]))
    left.barh(list(labels), values, color=BLUE, xerr=errors, error_kw={"ecolor": "0.3", "capsize": 3})
    left.set(xlabel="recall with 95 % interval over speakers", xlim=(0, 1), title=_title(report))
    right.barh(list(speakers), [one["uar"] for one in speakers.values()], color=GRAY)
    right.axvline(report["uar"]["value"], color=BLUE, label=f"all: {report['uar']['value']:.3f}")
    right.set(xlabel="UAR", ylabel="speaker", xlim=(0, 1), title="by speaker")
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.invert_yaxis()
    _save(figure, path)


def reliability(report: dict[str, Any], path: Path) -> None:
    """Plot accuracy against confidence, with and without the temperature, above the number of clips per confidence."""
    figure = Figure(figsize=(5, 5.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    upper.plot([0, 1], [0, 1], color="0.3", linewidth=1, linestyle=":", label="perfect calibration")
    styles = {
        "probabilities": ("probabilities", BLUE, "o-"),
        "without_temperature": ("without temperature", GRAY, "s--"),
    }
    for name, found in report["calibration"].items():
        label, colour, line = styles[name]
        bins = {key: [one[key] for one in found["bins"]] for key in ("confidence", "accuracy", "clips")}
        upper.plot(bins["confidence"], bins["accuracy"], line, color=colour, label=f"{label}: ECE {found['ece']:.3f}")
        lower.plot(bins["confidence"], bins["clips"], line, color=colour)
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), title=_title(report))
    upper.legend(loc="lower right")
    lower.set(xlabel="confidence", ylabel="clips")
    lower.set_ylim(bottom=0)
    _save(figure, path)


def gallery(report: dict[str, Any], predicted: pd.DataFrame, pictures: Sequence[Path], path: Path) -> None:
    """Plot, for each label, the most confident correct predictions and the most confident wrong ones.

    Args:
        report: content of `metrics.json`.
        predicted: content of `predictions.csv`.
        pictures: PNG of each row of `predicted`.
        path: PNG to write.
    """
    table = predicted.assign(picture=[str(path) for path in pictures]).sort_values("confidence", ascending=False)
    labels = [name for name in report["labels"] if (table["label"] == name).any()]
    figure = Figure(figsize=(2.1 * 2 * SHOWN, 1.45 * len(labels) + 0.6), layout="constrained")
    grid = figure.subplots(len(labels), 2 * SHOWN, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for row, label in zip(grid, labels, strict=True):
        own = table[table["label"] == label]
        right = own["predicted"] == label
        for first, some in ((0, own[right].head(SHOWN)), (SHOWN, own[~right].head(SHOWN))):
            for axes, clip in zip(row[first:], some.to_dict("records"), strict=False):
                with PIL.Image.open(clip["picture"]) as picture:
                    axes.imshow(picture.convert("RGB"))
                named = label if first == 0 else f"{label} \u2192 {clip['predicted']}"
                axes.set_title(f"{named}, {clip['confidence']:.2f}", fontsize=8)
    figure.suptitle(f"{_title(report)}; left: correct, right: wrong, most confident first", fontsize=10)
    _save(figure, path)


def _title(report: dict[str, Any]) -> str:
    leaky = " (leaky)" if report["leak"] or report["speakers_heard_in_training"] else ""
    return f"{report['checkpoint']}, {report['part']}: UAR {report['uar']['value']:.3f}{leaky}"


def _save(figure: Figure, path: Path) -> None:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    write_bytes(path, buffer.getvalue())
