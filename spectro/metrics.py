"""UAR, WA and macro-F1 of a confusion matrix: the one definition for choosing epochs and for reports."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Counts: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Figures:
    """What a confusion matrix says.

    Args:
        wa: accuracy (weighted accuracy, in the field's words).
        uar: unweighted average recall, the mean of the recalls of the labels that occur.
        f1: macro-F1 over the labels that occur or are predicted.
        precision: of each label, float64 (labels,); 0 where a label was never predicted.
        recall: of each label; NaN where a label does not occur.
        f1_of_label: of each label.
    """

    wa: float
    uar: float
    f1: float
    precision: Floats
    recall: Floats
    f1_of_label: Floats


def confusion(targets: Counts, predicted: Counts, labels: int) -> Counts:
    """Return the confusion matrix, int64 of shape (labels, labels): rows are true, columns predicted labels."""
    flat = np.bincount(targets * labels + predicted, minlength=labels * labels)
    return flat.reshape(labels, labels)


def figures(matrix: Counts) -> Figures:
    """Return the figures of a confusion matrix of shape (labels, labels); equal to scikit-learn's.

    Raises:
        ValueError: the matrix is empty.
    """
    if matrix.sum() == 0:
        raise ValueError("no clip was classified: there is nothing to measure")
    hits, true, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = hits / true
        precision = np.where(predicted > 0, hits / predicted, 0.0)
        f1 = np.where(true + predicted > 0, 2 * hits / (true + predicted), 0.0)
    return Figures(
        wa=float(hits.sum() / matrix.sum()),
        uar=float(recall[true > 0].mean()),
        f1=float(f1[true + predicted > 0].mean()),
        precision=precision,
        recall=recall,
        f1_of_label=f1,
    )
