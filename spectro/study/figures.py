"""The plots of a study's page, as inline SVG that uses the fonts of the page."""

from collections.abc import Sequence
from io import StringIO
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from spectro.study.results import Entry

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#7A6A00", "#000000")
"""Okabe & Ito (2008), colour-blind-safe, its yellow darkened to be seen on white."""
MARKERS = "osD^vPX*"
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlecolor": "#223",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#667",
    "axes.labelcolor": "#223",
    "xtick.color": "#445",
    "ytick.color": "#445",
}


@mpl.rc_context(STYLE)
def curves(name: str, runs: Sequence[pd.DataFrame]) -> Markup:
    """Plot loss and validation UAR of a system's runs over the epochs.

    Args:
        name: identifies the figure.
        runs: the `curves.csv` of each run.
    """
    figure = Figure(figsize=(4.6, 1.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for run in runs:
        epochs = run["epoch"] + 1
        left.plot(epochs, run["train_loss"], color=PALETTE[0], linewidth=0.9, alpha=0.8)
        left.plot(epochs, run["valid_loss"], color=PALETTE[3], linewidth=0.9, alpha=0.8, linestyle="--")
        right.plot(epochs, run["valid_uar"], color=PALETTE[2], linewidth=0.9, alpha=0.8)
    left.set(xlabel="epoch", title="loss: training —, validation - -", ylim=(0, None))
    right.set(xlabel="epoch", title="UAR, validation speakers", ylim=(0, 1))
    return _svg(figure, f"curves {name}")


@mpl.rc_context(STYLE)
def costs(place: tuple[str, str, str], systems: Sequence[Entry]) -> dict[str, Any]:
    """Plot UAR on new speakers over the cost of a system: time per clip, and time of the training.

    Args:
        place: corpus, label scheme and protocol.
        systems: all systems.

    Returns:
        `place` and `svg`.
    """
    here = [one for one in systems if (one.corpus, one.labels, one.protocol) == place]
    figure = Figure(figsize=(11, max(3.2, 0.24 * len(here) + 1.0)), layout="constrained")
    panels = {"clip_ms": "ms per clip, from recording to label", "train_s": "training, s"}
    low, high = min(one.uar for one in here), max(one.uar for one in here)
    margin = max(0.02, 0.08 * (high - low))
    for axes, (column, title) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        points = [(float(one.rows[column].mean()), one.uar, one.name) for one in here]
        points = [point for point in points if np.isfinite(point[0]) and point[0] > 0]
        axes.set(xscale="log", xlabel=title)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        if not points:
            continue
        axes.scatter([x for x, _y, _name in points], [y for _x, y, _name in points], s=22, color=PALETTE[0])
        _label(axes, points)
    figure.axes[0].set_ylim(low - margin, high + margin)  # for both panels, even if one has no points
    figure.axes[0].set_ylabel("UAR, new speakers")
    return {"place": place, "svg": _svg(figure, f"costs {place}")}


def _label(axes: Any, points: Sequence[tuple[float, float, str]]) -> None:
    """Write names in a column on the right, with lines to their points, so that none overlap."""
    ordered = sorted(points, key=lambda point: -point[1])
    places = np.linspace(0.98, 0.02, len(ordered)) if len(ordered) > 1 else [0.5]
    for (x, y, name), place in zip(ordered, places, strict=True):
        axes.annotate(
            name,
            (x, y),
            xytext=(1.04, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color="#223",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "#99a", "linewidth": 0.5},
        )


@mpl.rc_context(STYLE)
def embedding_map(embeddings: npt.NDArray[np.float32], clips: pd.DataFrame, labels: Sequence[str]) -> Markup:
    """Plot embeddings of clips in two dimensions (t-SNE), by label and by speaker.

    Args:
        embeddings: float32 of shape (clips, features).
        clips: table with the columns `label` and `speaker`.
        labels: names of the labels, in order.

    Source: van der Maaten & Hinton, Visualizing data using t-SNE, JMLR 9 (2008) 2579.
    """
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(embeddings) - 1) / 3)
    flat = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(embeddings)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    speakers = sorted(clips["speaker"].fillna("unknown").unique(), key=lambda name: (len(name), name))
    groups = (("label", list(labels)), ("speaker", speakers))
    for axes, (column, names) in zip(figure.subplots(1, 2), groups, strict=True):
        for number, name in enumerate(names):
            rows = (clips[column].fillna("unknown") == name).to_numpy()
            axes.scatter(
                *flat[rows].T,
                s=16,
                color=PALETTE[number % len(PALETTE)],
                marker=MARKERS[(number + number // len(PALETTE)) % len(MARKERS)],
                label=name,
                alpha=0.85,
                linewidths=0,
            )
        axes.set(title=f"by {column}", xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    return _svg(figure, "embeddings")


def shade(value: float | None) -> str:
    """Return the CSS colours of a cell with a share, 0 to 1: white to dark blue, with a readable text colour."""
    if value is None or np.isnan(value):
        return "background:#fff;color:#667"
    low, high = np.array([255, 255, 255]), np.array([0, 74, 128])
    red, green, blue = (low + (high - low) * min(1.0, max(0.0, value)) ** 1.2).round().astype(int)
    return f"background:rgb({red},{green},{blue});color:{'#fff' if value > 0.55 else '#123'}"


def _svg(figure: Figure, name: str) -> Markup:
    """Return a figure as an SVG element that scales with the page; equal content gives equal text."""
    buffer = StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])  # matplotlib escapes the text that it writes
