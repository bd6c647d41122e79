import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
from sklearn.metrics import recall_score

from spectro.engines.base import batch
from spectro.errors import EvaluationError
from spectro.evaluate.evaluate import EvaluateSettings, adapted_probabilities, evaluate
from spectro.evaluate.intervals import calibration
from spectro.model.batch_norms import RELEVANCE
from spectro.model.checkpoint import save
from spectro.picture import png
from spectro.predict.predictor import Predictor
from spectro.rendering.index import read_index
from spectro.rendering.render import RenderSettings, render
from spectro.train.finetune import finetune
from tests.conftest import SMALL, World, finetune_settings


def _settings(world: World, out: Path, **changes: object) -> EvaluateSettings:
    defaults = EvaluateSettings(checkpoint=world.checkpoint, index=world.images, out=out, rounds=50, device="cpu")
    return replace(defaults, **changes)  # type: ignore[arg-type]


def test_the_report_covers_test_speakers_and_matches_its_predictions(world: World, tmp_path: Path) -> None:
    report = evaluate(_settings(world, tmp_path))
    assert json.loads((tmp_path / "metrics.json").read_text()) == report
    table = pd.read_csv(tmp_path / "predictions.csv", dtype={"speaker": str})
    split = world.trained.about.split
    assert set(table["speaker"]) == set(split.speakers["test"])
    assert report["clips"] == len(table) == 6 * len(split.speakers["test"])
    present = sorted(set(table["label"]))
    expected = recall_score(table["label"], table["predicted"], labels=present, average="macro")
    assert report["uar"]["value"] == pytest.approx(expected, abs=1e-4)
    assert report["speakers_heard_in_training"] == []
    probabilities = table[[f"p_{label}" for label in world.trained.about.labels]]
    assert (probabilities.sum(axis=1) - 1).abs().max() < 1e-4
    assert (probabilities.idxmax(axis=1).str.removeprefix("p_") == table["predicted"]).all()
    for name in ("confusion.png", "recall.png", "reliability.png", "gallery.png"):
        with PIL.Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 200


def test_the_report_includes_calibration_without_temperature_scaling(world: World, tmp_path: Path) -> None:
    found = evaluate(_settings(world, tmp_path))["calibration"]
    about = msgspec.structs.replace(world.trained.about, temperature=1.0)
    raw = Predictor(replace(world.trained, about=about), device="cpu")
    index, _spec = read_index(world.images)
    tested = index[(index["copy"] == 0) & index["speaker"].isin(world.trained.about.split.speakers["test"])]
    probabilities = raw.scores([png.read(world.images / name).pixels for name in tested["image"]]).probabilities
    targets = np.array([raw.labels.index(label) for label in tested["emotion"]])
    expected = calibration(probabilities, targets)
    assert found["without_temperature"]["ece"] == pytest.approx(expected["ece"], abs=1e-3)
    assert found["without_temperature"]["nll"] == pytest.approx(expected["nll"], abs=1e-3)
    assert found["probabilities"]["nll"] != pytest.approx(expected["nll"], abs=1e-3)


def test_transductive_results_are_separate_and_match_a_reference(world: World, tmp_path: Path) -> None:
    plain = evaluate(_settings(world, tmp_path / "plain"))
    both = evaluate(_settings(world, tmp_path / "both", transductive=True))
    assert "transductive" not in plain
    assert both["uar"] == plain["uar"]
    assert both["transductive"]["clips"] == plain["clips"]
    assert both["transductive"]["adapted_statistics"] == ["batch norms", "features"]
    predictor = Predictor(world.checkpoint, device="cpu")
    index, _spec = read_index(world.images)
    some = index[(index["copy"] == 0) & (index["speaker"] == "3")]
    pictures = [world.images / name for name in some["image"]]
    found = adapted_probabilities(predictor, [*pictures, *pictures[:2]], np.array(["3"] * len(some) + ["a", "a"]), 32)
    net = copy.deepcopy(world.trained.net)
    shown = torch.from_numpy(batch([png.read(path).pixels for path in pictures]))
    for module in net.modules():  # the reference: one pass in training mode whose statistics are then used for all
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = 1.0
            module.train()
    norm, share = net.feature_norm, len(shown) / (len(shown) + RELEVANCE)
    assert norm is not None
    with torch.inference_mode():
        net(shown)
        features = net.eval().embed(shown)
        mean = (1 - share) * norm.shift + share * features.mean(0)
        variance = (1 - share) * (norm.scale**2 - norm.eps + (norm.shift - mean) ** 2)
        variance += share * (features.var(0) + (features.mean(0) - mean) ** 2)
        standard = (features - mean) / (variance + norm.eps).sqrt() * norm.scale + norm.shift
        expected = world.trained.about.probabilities(net.head(standard).numpy())
    np.testing.assert_allclose(found[: len(some)], expected, atol=1e-5)
    assert np.abs(found[0] - found[-2]).max() > 1e-4, "probabilities do not depend on the speaker's other clips"
    again = adapted_probabilities(predictor, [*pictures, pictures[0]], np.array(["3"] * len(some) + ["a"]), 2)
    assert np.abs(again[: len(some)] - expected).max() > 1e-5, "batches of 2"
    alone = predictor.scores([png.read(pictures[0]).pixels]).probabilities[0]
    np.testing.assert_allclose(again[-1], alone, atol=1e-5)


def test_a_network_without_batch_norms_is_adapted_by_its_features_or_not_at_all(world: World, tmp_path: Path) -> None:
    made = tmp_path / "made"
    trained = finetune(finetune_settings(world.images, made, backbone="convnext_atto"))
    found = evaluate(_settings(world, tmp_path / "out", checkpoint=made, transductive=True))
    assert found["transductive"]["adapted_statistics"] == ["features"]
    plain, adapted = (
        pd.read_csv(tmp_path / "out" / f"predictions{one}.csv")["p_angry"] for one in ("", "-transductive")
    )
    assert (plain - adapted).abs().max() > 1e-4
    trained.net.feature_norm = None  # as an earlier version left it
    save(trained, made)
    with pytest.raises(EvaluationError, match=r"'convnext_atto' has no batch norms, .* train it again, or leave"):
        evaluate(_settings(world, tmp_path / "none", checkpoint=made, transductive=True))


def test_answers_among_a_corpus_s_labels_hold_for_transductive_figures_and_for_labels_that_the_part_lacks(
    world: World, tmp_path: Path
) -> None:
    shutil.copytree(world.images, tmp_path / "images")
    index = pd.read_parquet(tmp_path / "images" / "index.parquet")
    tested = index["speaker"].isin(world.trained.about.split.speakers["test"])
    calm = index["emotion"] == "calm"
    for chosen, labels in ((~calm, {"happy", "angry"}), (~(calm & tested), {"happy", "angry", "calm"})):
        index[chosen].to_parquet(tmp_path / "images" / "index.parquet")
        out = tmp_path / f"{len(labels)}"
        evaluate(_settings(world, out, index=tmp_path / "images", answers="corpus", transductive=True))
        for name in ("predictions.csv", "predictions-transductive.csv"):
            found = pd.read_csv(out / name)
            assert {label for label in ("happy", "angry", "calm") if found[f"p_{label}"].any()} == labels


def test_transductive_evaluation_needs_speakers(world: World, tmp_path: Path) -> None:
    table = tmp_path / "clips.csv"
    lines = [f"{clip},{clip.stem.split('_')[1]}," for clip in sorted(world.corpus.rglob("*.wav"))[:12]]
    table.write_text("\n".join(["path,label,speaker", *lines]))
    render(RenderSettings(corpus="folder", source=table, out=tmp_path / "images", spec=SMALL, workers=1))
    with pytest.raises(EvaluationError, match="need every clip's speaker"):
        evaluate(_settings(world, tmp_path / "out", index=tmp_path / "images", part="all", transductive=True))


def test_metrics_equal_those_that_fine_tuning_wrote(world: World, tmp_path: Path) -> None:
    for part in ("test", "valid"):
        report = evaluate(_settings(world, tmp_path, part=part))
        written = world.trained.about.metrics[part]
        assert {name: report[name]["value"] for name in ("uar", "wa")} == {"uar": written.uar, "wa": written.wa}


def test_the_report_lists_speakers_that_were_trained_on(world: World, tmp_path: Path) -> None:
    report = evaluate(_settings(world, tmp_path, part="all"))
    speakers = world.trained.about.split.speakers
    assert report["speakers_heard_in_training"] == sorted([*speakers["train"], *speakers["valid"]])
    assert report["clips"] == 48


def test_a_leaky_checkpoint_is_tested_on_its_own_split_and_reports_the_leak(world: World, tmp_path: Path) -> None:
    trained = finetune(finetune_settings(world.images, tmp_path / "leaky", protocol="random-leaky"))
    report = evaluate(_settings(world, tmp_path / "report", checkpoint=tmp_path / "leaky"))
    assert "shared between training and test" in report["leak"]
    assert report["uar"]["value"] == trained.about.metrics["test"].uar
    assert report["clips"] == trained.about.metrics["test"].clips


def test_a_leaky_checkpoint_is_not_evaluated_on_another_rendering(world: World, tmp_path: Path) -> None:
    """A random split changes as soon as one clip is missing."""
    finetune(finetune_settings(world.images, tmp_path / "leaky", protocol="random-leaky"))
    shutil.copytree(world.images, tmp_path / "images")
    index = pd.read_parquet(tmp_path / "images" / "index.parquet")
    index[index["clip_id"] != index["clip_id"].iloc[0]].to_parquet(tmp_path / "images" / "index.parquet")
    with pytest.raises(EvaluationError, match=r"random clips \(random-leaky\) of another rendering"):
        evaluate(_settings(world, tmp_path / "out", checkpoint=tmp_path / "leaky", index=tmp_path / "images"))


def test_pictures_of_another_spec_raise_an_error_that_names_the_spec(world: World, tmp_path: Path) -> None:
    other = replace(SMALL, hop_length=300)
    render(RenderSettings(corpus="synthetic", source=world.corpus, out=tmp_path / "images", spec=other, workers=1))
    with pytest.raises(EvaluationError, match=r"render with --spec .*spectro\.json"):
        evaluate(_settings(world, tmp_path, index=tmp_path / "images"))


def test_another_corpus_is_evaluated_only_with_part_all(world: World, tmp_path: Path) -> None:
    table = tmp_path / "clips.csv"
    clips = sorted(world.corpus.rglob("*.wav"))[:12]
    lines = [f"{clip},{clip.stem.split('_')[1]},someone" for clip in clips]
    table.write_text("\n".join(["path,label,speaker", *lines]))
    render(RenderSettings(corpus="folder", source=table, out=tmp_path / "images", spec=SMALL, workers=1))
    with pytest.raises(EvaluationError, match="--part all"):
        evaluate(_settings(world, tmp_path, index=tmp_path / "images"))
    report = evaluate(_settings(world, tmp_path, index=tmp_path / "images", part="all"))
    assert report["corpora"] == ["folder"]
    assert report["speakers_heard_in_training"] == []
