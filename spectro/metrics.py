"""UAR, WA and macro-F1 of a confusion matrix: the single definition for choosing epochs and for reports."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Counts: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Figures:
    """Figures of a confusion matrix.

    Args:
        wa: accuracy (known in the field as weighted accuracy).
        uar: unweighted average recall, the mean recall over the labels that occur.
        f1: macro-F1 over the labels that occur or are predicted.
        precision: precision of each label, float64 (labels,); 0 for a label that was never predicted.
        recall: recall of each label; NaN for a label that does not occur.
        f1_of_label: F1 of each label.
    """

    wa: float
    uar: float
    f1: float
    precision: Floats
    recall: Floats
    f1_of_label: Floats


def confusion(targets: Counts, predicted: Counts, labels: int) -> Counts:
    """Return the confusion matrix, int64 of shape (labels, labels): rows are true labels, columns predicted labels."""
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
