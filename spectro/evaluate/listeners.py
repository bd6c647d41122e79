"""Agreement with listeners: an actor plays one emotion, and listeners often perceive another.

A listener's answer is one vote for the clip, drawn at random. The agreement of an answer is therefore its share of the
votes, averaged over clips. This puts a system, the label and another listener on one scale. Listeners who chose none of
the labels do not count.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from spectro.evaluate.intervals import interval
from spectro.metrics import Counts, Floats

AGREEMENTS = ("agreement", "another_listener", "label", "most_possible")


def listeners(
    votes: Floats,
    predicted: Counts,
    targets: Counts,
    speakers: npt.NDArray[np.str_],
    *,
    rounds: int = 1000,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Return how well predictions agree with listeners, as JSON values; None if no clip has votes.

    `agreement` is the probability that a listener chooses the predicted label; `another_listener` that a second
    listener of the clip chooses the same label (over clips with two votes or more); `label` that a listener chooses
    the clip's label. `most_possible` is the agreement of always predicting the listeners' most frequent choice.
    `listener_uar` and `majority_uar` are the UAR of a listener, and of the majority, against the labels; if several
    emotions tie for the majority, the correct one counts in part.

    Args:
        votes: how many listeners chose each label, float64 of shape (clips, labels).
        predicted: predicted labels' numbers, int64 of shape (clips,).
        targets: true labels' numbers, likewise.
        speakers: speaker of each clip.
        rounds: number of samples of the bootstrap over speakers.
        seed: seed of the bootstrap.
    """
    voted = votes.sum(axis=1) > 0
    if not voted.any():
        return None
    votes, predicted, targets, speakers = votes[voted], predicted[voted], targets[voted], speakers[voted]
    count = votes.sum(axis=1)
    shares, clips = votes / count[:, None], np.arange(len(votes))
    pairs = np.where(count >= 2, (votes * (votes - 1)).sum(axis=1) / np.maximum(count * (count - 1), 1), np.nan)
    each = np.stack([shares[clips, predicted], pairs, shares[clips, targets], shares.max(axis=1)])
    whole = _means(np.nansum(each, axis=1), (~np.isnan(each)).sum(axis=1))
    samples = _samples(each, speakers, rounds, seed)
    first = votes == votes.max(axis=1, keepdims=True)
    majority = first / first.sum(axis=1, keepdims=True)
    return {
        "clips": len(votes),
        "votes_per_clip": round(float(count.mean()), 2),
        **{
            name: {
                "value": None if np.isnan(whole[place]) else round(float(whole[place]), 4),
                "interval": interval(samples[:, place]),
            }
            for place, name in enumerate(AGREEMENTS)
        },
        "listener_uar": _uar(shares[clips, targets], targets),
        "majority_uar": _uar(majority[clips, targets], targets),
    }


def _samples(each: Floats, speakers: npt.NDArray[np.str_], rounds: int, seed: int) -> Floats:
    """Return the means of samples of speakers, float64 of shape (rounds, figures); no rows if there is one speaker."""
    names, places = np.unique(speakers, return_inverse=True)
    if len(names) < 2:
        return np.empty((0, len(each)))
    known = ~np.isnan(each)
    sums = np.stack([np.bincount(places, np.nan_to_num(one), len(names)) for one in each], axis=1)
    counts = np.stack([np.bincount(places, one, len(names)) for one in known], axis=1)
    drawn = np.random.default_rng(seed).integers(0, len(names), (rounds, len(names)))
    return _means(sums[drawn].sum(axis=1), counts[drawn].sum(axis=1))


def _means(sums: Floats, counts: Floats | Counts) -> Floats:
    """Return sums divided by counts; NaN where the count is 0."""
    means: Floats = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return means


def _uar(hits: Floats, targets: Counts) -> float:
    return round(float(np.mean([hits[targets == label].mean() for label in np.unique(targets)])), 4)
