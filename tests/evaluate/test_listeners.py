"""Agreement with listeners, compared with figures counted vote by vote."""

from itertools import permutations

import numpy as np
import pytest

from spectro.evaluate.listeners import listeners

VOTES = np.array([[3, 1, 0], [0, 2, 2], [1, 0, 0], [0, 0, 0], [2, 2, 2]], dtype=float)
TARGETS = np.array([0, 2, 1, 0, 1])
ANSWERS = np.array([0, 1, 0, 2, 2])
SPEAKERS = np.array(["a", "b", "a", "b", "c"])
TOLD = [0, 1, 2, 4]


def _voted_labels(clip: int) -> list[int]:
    return [label for label in range(3) for _ in range(int(VOTES[clip, label]))]


def test_agreement_figures_equal_direct_vote_counts() -> None:
    found = listeners(VOTES, ANSWERS, TARGETS, SPEAKERS, rounds=50)
    assert found is not None
    assert found["clips"] == 4
    assert found["votes_per_clip"] == (4 + 4 + 1 + 6) / 4
    agreement = np.mean([np.mean([one == ANSWERS[clip] for one in _voted_labels(clip)]) for clip in TOLD])
    label = np.mean([np.mean([one == TARGETS[clip] for one in _voted_labels(clip)]) for clip in TOLD])
    pairs = [
        [one == other for one, other in permutations(_voted_labels(clip), 2)]
        for clip in TOLD
        if len(_voted_labels(clip)) > 1
    ]
    assert found["agreement"]["value"] == pytest.approx(agreement, abs=1e-4)
    assert found["label"]["value"] == pytest.approx(label, abs=1e-4)
    assert found["another_listener"]["value"] == pytest.approx(np.mean([np.mean(one) for one in pairs]), abs=1e-4)
    assert found["most_possible"]["value"] == pytest.approx(np.mean([3 / 4, 1 / 2, 1, 1 / 3]), abs=1e-4)


def test_listeners_and_their_majority_have_a_uar_against_the_labels() -> None:
    found = listeners(VOTES, ANSWERS, TARGETS, SPEAKERS, rounds=50)
    assert found is not None
    assert found["listener_uar"] == pytest.approx(np.mean([3 / 4, np.mean([0, 1 / 3]), 1 / 2]), abs=1e-4)
    assert found["majority_uar"] == pytest.approx(np.mean([1, np.mean([0, 1 / 3]), 1 / 2]), abs=1e-4)


def test_intervals_resample_speakers_and_need_at_least_two() -> None:
    votes, answers = np.tile([[1.0, 0.0]], (6, 1)), np.array([0, 0, 0, 1, 1, 1])
    two = listeners(votes, answers, np.zeros(6, np.int64), np.array(list("aaabbb")), rounds=400)
    one = listeners(votes, answers, np.zeros(6, np.int64), np.array(list("aaaaaa")), rounds=400)
    assert two is not None and one is not None
    assert two["agreement"] == {"value": 0.5, "interval": [0.0, 1.0]}
    assert one["agreement"] == {"value": 0.5, "interval": [None, None]}


def test_clips_without_votes_give_no_result() -> None:
    assert listeners(np.zeros((2, 3)), np.zeros(2, np.int64), np.zeros(2, np.int64), np.array(["a", "b"])) is None
