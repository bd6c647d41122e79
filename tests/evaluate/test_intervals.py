import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torchmetrics.functional.classification import multiclass_calibration_error

from spectro.evaluate.intervals import bootstrap, by_group, calibration, gain, interval, summarise
from spectro.metrics import confusion, figures

LABELS = ("a", "b", "c", "d", "e")


def _clips(count: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return targets, predictions that are mostly correct, and speakers; label 4 never occurs in the targets."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, 4, count)
    predicted = np.where(generator.random(count) < 0.6, targets, generator.integers(0, 5, count))
    return targets, predicted, generator.integers(0, 6, count).astype(str)


def test_metrics_equal_those_of_scikit_learn() -> None:
    targets, predicted, _ = _clips()
    matrix = confusion(targets, predicted, 5)
    np.testing.assert_array_equal(matrix, reference.confusion_matrix(targets, predicted, labels=range(5)))
    found = figures(matrix)
    assert found.wa == pytest.approx(reference.accuracy_score(targets, predicted))
    assert found.uar == pytest.approx(reference.recall_score(targets, predicted, labels=range(4), average="macro"))
    assert found.f1 == pytest.approx(reference.f1_score(targets, predicted, average="macro", zero_division=0))
    precision, recall, f1, _support = reference.precision_recall_fscore_support(
        targets, predicted, labels=range(5), zero_division=0
    )
    np.testing.assert_allclose(found.precision, precision)
    np.testing.assert_allclose(found.recall[:4], recall[:4])
    assert np.isnan(found.recall[4])
    np.testing.assert_allclose(found.f1_of_label, f1)


def test_intervals_equal_those_of_resampling_speakers() -> None:
    """The reference draws speakers and evaluates their clips with scikit-learn."""
    targets, predicted, speakers = _clips()
    matrices = by_group(targets, predicted, speakers, 5)
    found = interval([sample.uar for sample in bootstrap(matrices, rounds=300, seed=1)])
    names = np.array(list(matrices))
    draws = np.random.default_rng(1).integers(0, len(names), (300, len(names)))
    samples = []
    for draw in draws:
        chosen = np.concatenate([np.flatnonzero(speakers == names[number]) for number in draw])
        samples.append(reference.recall_score(targets[chosen], predicted[chosen], labels=range(4), average="macro"))
    np.testing.assert_allclose(found, np.quantile(samples, [0.025, 0.975]), atol=1e-4)


def test_intervals_contain_the_value_for_few_and_many_speakers() -> None:
    targets, predicted, speakers = _clips(4000)
    few = summarise(targets, predicted, speakers, np.full(4000, ""), LABELS, rounds=400)
    many = summarise(targets, predicted, np.arange(4000).astype(str), np.full(4000, ""), LABELS, rounds=400)
    for report in (few, many):
        low, high = report["uar"]["interval"]
        assert low < report["uar"]["value"] < high
    assert len(few["speakers"]) == 6
    assert few["genders"] == {}


def test_a_single_speaker_has_no_interval() -> None:
    targets, predicted = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    alone = np.array(["a"] * 4)
    found = summarise(targets, predicted, alone, alone, ("x", "y"))
    assert (found["uar"]["value"], found["uar"]["interval"]) == (0.75, [None, None])
    assert found["labels"]["x"]["recall"]["interval"] == [None, None]
    matrices = by_group(targets, predicted, alone, 2)
    assert gain(matrices, matrices) == {"gain": 0.0, "gain_low": None, "gain_high": None}


def test_speakers_are_sorted_numerically() -> None:
    targets = np.zeros(4, dtype=np.int64)
    assert list(by_group(targets, targets, np.array(["16", "2", "anna", "5"]), 2)) == ["2", "5", "16", "anna"]


def test_genders_have_their_own_uar_and_an_absent_label_has_no_recall() -> None:
    targets, predicted, speakers = _clips()
    genders = np.where(speakers < "3", "female", "male")
    report = summarise(targets, predicted, speakers, genders, LABELS, rounds=10)
    for gender in ("female", "male"):
        chosen = genders == gender
        expected = reference.recall_score(targets[chosen], predicted[chosen], labels=range(4), average="macro")
        assert report["genders"][gender]["uar"] == pytest.approx(expected, abs=1e-4)
    assert report["labels"]["e"]["recall"] == {"value": None, "interval": [None, None]}
    assert sum(report["labels"][label]["clips"] for label in LABELS) == 400


def test_an_empty_confusion_matrix_raises_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to measure"):
        figures(np.zeros((2, 2), np.int64))


def test_calibration_equals_that_of_torchmetrics_and_scikit_learn() -> None:
    targets = _clips()[0]
    probabilities = np.random.default_rng(1).dirichlet(np.full(5, 0.4), len(targets))
    probabilities[0] = [0, 1, 0, 0, 0]  # the last bin includes its upper edge
    found = calibration(probabilities, targets)
    ece = multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(targets), num_classes=5, n_bins=15)
    assert found["ece"] == pytest.approx(float(ece), abs=2e-4)
    assert found["nll"] == pytest.approx(
        reference.log_loss(targets, np.maximum(probabilities, 1e-12), labels=range(5)), abs=1e-3
    )
    assert sum(one["clips"] for one in found["bins"]) == len(targets)


def test_calibrated_probabilities_have_an_ece_of_zero() -> None:
    probabilities = np.tile([0.75, 0.25], (400, 1))
    found = calibration(probabilities, np.repeat([0, 0, 0, 1], 100))
    assert found["ece"] == 0 and found["bins"] == [{"clips": 400, "confidence": 0.75, "accuracy": 0.75}]
