"""The clips that a baseline is trained and evaluated on, and its results, in the format of `evaluate`."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from spectro.corpora.labels import label_clips
from spectro.corpora.splits import PARTS, Part, Split, data_fingerprint, split
from spectro.errors import CorpusError, TrainingError
from spectro.evaluate.report import (
    RUN_FILE,
    clip_columns,
    clip_ms,
    is_report,
    is_run,
    show_figures,
    with_probabilities,
    write_report,
)
from spectro.files import printable, write_json
from spectro.model.metadata import Figures, HeldOut, Result, Training, TrainingData, label_problem
from spectro.outputs import LOCK, claimed
from spectro.schema import plain

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Clips:
    """Labelled clips and copies, and their parts.

    Args:
        rows: rows of an image index with the columns `label` and `target` (the label's number).
        scheme: name of the label scheme.
        labels: names of the labels, in order.
        split: the split of this fold.
    """

    rows: pd.DataFrame
    scheme: str
    labels: tuple[str, ...]
    split: Split

    @classmethod
    def of(cls, index: pd.DataFrame, scheme: str, protocol: str, fold: int) -> Self:
        """Label and split the clips of an image index, which may have further columns.

        Raises:
            CorpusError: these clips do not provide the labels or the split.
        """
        labelled, labels = label_clips(index, scheme)
        if problem := label_problem(labels):
            raise CorpusError(f"{problem}, and render again")
        labelled["target"] = [labels.index(label) for label in labelled["label"]]
        return cls(labelled, scheme, labels, split(labelled, protocol, fold))

    @property
    def fingerprint(self) -> str:
        """A fingerprint of these clips, copies, labels and parts."""
        return data_fingerprint(self.rows, self.split)

    def part(self, part: Part, *, copies: bool = False) -> Numbers:
        """Return the row numbers of a part; augmented copies are included only with `copies`."""
        return np.flatnonzero(self.split.rows(self.rows, part, copies=copies))


@contextmanager
def run_folder(out: Path, further: Iterable[str] = (), *, begun: bool = False) -> Iterator[None]:
    """Hold a run's folder exclusively while the block writes to it.

    Args:
        out: the folder.
        further: names that the run writes there besides `run.json` and its reports.
        begun: whether a run is known to have begun there.

    Raises:
        TrainingError: files there are not of a run, or another run is writing there.
    """
    reports = [f"evaluation-{part}" for part in PARTS[1:]]
    known = begun or is_run(out) or any(is_report(out / name) for name in reports)
    files = [out / name for name in (RUN_FILE, *reports, *further)]
    with claimed(files, lock=out / LOCK, error=TrainingError, known=known):
        yield


def report(
    out: Path,
    part: Part,
    clips: Clips,
    predicted: Numbers,
    probabilities: npt.NDArray[np.float64] | None,
    classify: Callable[[Path], Any],
) -> dict[str, Any]:
    """Write the report of a system's predictions for the untouched clips of a part to `out/evaluation-PART`.

    Args:
        out: the run's folder.
        part: the part.
        clips: the clips.
        predicted: numbers of the predicted labels, int64 of shape (clips of the part,).
        probabilities: float64 of shape (clips of the part, labels), or None for systems that give none.
        classify: classifies one recording, given its path, to time it; used for test speakers only.

    Returns:
        the content of `metrics.json`.
    """
    table = clip_columns(clips.rows.iloc[clips.part(part)]).reset_index(drop=True)
    if probabilities is not None:
        table = with_probabilities(table, clips.labels, probabilities)
    # a classifier need not predict the most probable label
    table["predicted"] = [clips.labels[number] for number in predicted]
    conditions = {
        "checkpoint": out.name,
        "corpora": sorted(set(table["corpus"])),
        "part": part,
        **{name: getattr(clips.split, name) for name in ("protocol", "fold", "leak")},
        "speakers_heard_in_training": [],
        "clip_ms": clip_ms(classify, table["path"]) if part == "test" else None,
    }
    return write_report(out / f"evaluation-{part}", conditions, table, clips.labels)


def write_run(
    out: Path,
    clips: Clips,
    reports: dict[Part, dict[str, Any]],
    training: Training,
    *,
    backbone: str,
    parameters: int | None,
) -> Result:
    """Write `run.json`: the facts about a run that a study or a reader needs.

    Args:
        out: the run's folder.
        clips: the clips.
        reports: the results of `report`, by part.
        training: the training run.
        backbone: name of the trained classifier or network.
        parameters: its number of weights; None for methods that store clips or trees.

    Returns:
        the content of `run.json`.
    """
    run = Result(
        backbone=backbone,
        parameters=parameters,
        data=TrainingData(corpora=tuple(sorted(set(clips.rows["corpus"]))), scheme=clips.scheme),
        split=HeldOut.of(clips.split),
        training=training,
        metrics={
            part: Figures(clips=found["clips"], **{name: found[name]["value"] for name in ("uar", "wa", "f1")})
            for part, found in reports.items()
        },
    )
    write_json(out / RUN_FILE, plain(run))
    return run


def show(run: Result, out: Path) -> None:
    """Print the figures of a run."""
    show_figures(run.split, run.metrics)
    print(f"results in {printable(out)}")
