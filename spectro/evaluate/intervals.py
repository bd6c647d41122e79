"""Figures of a classifier, with bootstrap intervals over speakers.

All figures are computed from one confusion matrix per speaker. Clips of one speaker are alike, so the bootstrap
resamples speakers, not clips, with replacement (Bisani & Ney, ICASSP 2004, resample speakers for the same reason).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from spectro.corpora.splits import natural
from spectro.metrics import Counts, Figures, Floats, confusion, figures

LEVEL = 0.95
BINS = 15


def by_group(targets: Counts, predicted: Counts, groups: npt.NDArray[np.str_], labels: int) -> dict[str, Counts]:
    """Return one confusion matrix per group (speaker, gender), by name."""
    return {
        group: confusion(targets[groups == group], predicted[groups == group], labels)
        for group in natural(set(groups.tolist()))
    }


def bootstrap(matrices: dict[str, Counts], *, rounds: int = 1000, seed: int = 0) -> list[Figures]:
    """Return the figures of `rounds` samples of speakers, drawn with replacement; none if there is only one speaker.

    Args:
        matrices: one confusion matrix per speaker.
        rounds: number of samples.
        seed: seed of the sampling.
    """
    if len(matrices) < 2:
        return []
    stacked = np.stack(list(matrices.values()))
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(stacked), (rounds, len(stacked)))
    return [figures(stacked[speakers].sum(axis=0)) for speakers in drawn]


def interval(samples: Floats | list[float]) -> list[float | None]:
    """Return the middle 95 % of samples as [low, high]; [None, None] if there are no samples."""
    values = np.asarray(samples, dtype=np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return [None, None]
    edges = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [round(float(edge), 4) for edge in edges]


def gain(base: dict[str, Counts], other: dict[str, Counts]) -> dict[str, float | None]:
    """Return how much higher the UAR of other predictions for the same clips is, with its interval.

    Both bootstraps draw the same speakers, so a speaker that is hard for every system cancels out in the difference.

    Args:
        base: one confusion matrix per speaker.
        other: confusion matrices of the other predictions, for the same speakers in the same order.

    Returns:
        `gain`, and the ends of its interval, `gain_low` and `gain_high`.
    """
    whole = [figures(np.sum(list(one.values()), axis=0)).uar for one in (base, other)]
    drawn = [[sample.uar for sample in bootstrap(one)] for one in (base, other)]
    low, high = interval(np.subtract(drawn[1], drawn[0]))
    return {"gain": whole[1] - whole[0], "gain_low": low, "gain_high": high}


def summarise(
    targets: Counts,
    predicted: Counts,
    speakers: npt.NDArray[np.str_],
    genders: npt.NDArray[np.str_],
    labels: tuple[str, ...],
    *,
    groups: dict[str, npt.NDArray[np.str_]] | None = None,
    rounds: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return all figures as JSON values, with intervals.

    Args:
        targets: true labels' numbers, int64 of shape (clips,).
        predicted: predicted labels' numbers, likewise.
        speakers: speaker of each clip.
        genders: gender of each clip's speaker; empty where unknown.
        labels: names of the labels.
        groups: further groupings of speakers (age, ...): the group of each clip, empty where unknown.
        rounds: number of bootstrap samples.
        seed: seed of the bootstrap.
    """
    matrix = confusion(targets, predicted, len(labels))
    whole = figures(matrix)
    of_speaker = by_group(targets, predicted, speakers, len(labels))
    of_gender = by_group(targets[genders != ""], predicted[genders != ""], genders[genders != ""], len(labels))
    samples = bootstrap(of_speaker, rounds=rounds, seed=seed)
    of_groups: dict[str, dict[str, Any]] = {}
    for name, own in (groups or {}).items():
        for group in sorted(set(own.tolist()) - {""}):
            chosen = own == group
            voices = by_group(targets[chosen], predicted[chosen], speakers[chosen], len(labels))
            drawn = interval([one.uar for one in bootstrap(voices, rounds=rounds, seed=seed)])
            short = _short(np.sum(list(voices.values()), axis=0))
            of_groups.setdefault(name, {})[group] = {"speakers": len(voices), **short, "uar_interval": drawn}
    return {
        "clips": len(targets),
        "interval": f"middle {LEVEL:.0%} of {rounds} samples of {len(of_speaker)} speakers, seed {seed}",
        **{
            name: {"value": round(getattr(whole, name), 4), "interval": interval([getattr(s, name) for s in samples])}
            for name in ("uar", "wa", "f1")
        },
        "labels": {
            label: {
                "clips": int(matrix[place].sum()),
                "precision": _with_interval(whole, samples, "precision", place),
                "recall": _with_interval(whole, samples, "recall", place),
                "f1": _with_interval(whole, samples, "f1_of_label", place),
            }
            for place, label in enumerate(labels)
        },
        "speakers": {name: _short(one) for name, one in of_speaker.items()},
        "genders": {name: _short(one) for name, one in of_gender.items()},
        **({"groups": of_groups} if of_groups else {}),
        "confusion": matrix.tolist(),
    }


def calibration(probabilities: Floats, targets: Counts) -> dict[str, Any]:
    """Return how well probabilities are calibrated, as JSON values.

    `ece` is the expected calibration error: the mean distance between confidence and accuracy over the `bins`, 15 equal
    ranges of confidence, weighted by their clips (empty bins are left out). `nll` is the negative log-likelihood in
    nats, of probabilities of 1e-12 or more: smaller ones count as this.

    Args:
        probabilities: float64 of shape (clips, labels).
        targets: true labels' numbers, int64 of shape (clips,).

    Source: Guo et al., On calibration of modern neural networks, ICML 2017, section 2.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    places = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    bins = [
        {
            "clips": int((places == place).sum()),
            "confidence": round(float(confidence[places == place].mean()), 4),
            "accuracy": round(float(right[places == place].mean()), 4),
        }
        for place in sorted(set(places.tolist()))
    ]
    likelihood = probabilities[np.arange(len(targets)), targets]
    return {
        "ece": round(sum(one["clips"] * abs(one["confidence"] - one["accuracy"]) for one in bins) / len(targets), 4),
        "nll": round(float(-np.log(np.maximum(likelihood, 1e-12)).mean()), 4),
        "bins": bins,
    }


def _with_interval(whole: Figures, samples: list[Figures], name: str, place: int) -> dict[str, Any]:
    value = float(getattr(whole, name)[place])
    return {
        "value": None if np.isnan(value) else round(value, 4),
        "interval": interval([float(getattr(sample, name)[place]) for sample in samples]),
    }


def _short(matrix: Counts) -> dict[str, Any]:
    found = figures(matrix)
    return {"clips": int(matrix.sum()), "uar": round(found.uar, 4), "wa": round(found.wa, 4)}
