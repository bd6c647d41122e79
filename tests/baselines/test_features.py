import os
import shutil
from dataclasses import replace
from pathlib import Path

import librosa
import numpy as np
import pandas as pd
import pytest
import scipy.stats

from spectro.audio import augment
from spectro.audio.augment import AugmentSettings
from spectro.baselines import features
from spectro.baselines.classical import ClassicalSettings, classical
from spectro.baselines.features import PARTS, STATISTICS, FeatureSettings, describe, extract, handmade
from spectro.cli import run_verb
from spectro.errors import FeatureError, WeightsError
from spectro.files import held, read_json
from spectro.picture import spectrogram
from spectro.rendering.index import SETTINGS, read_index
from tests.conftest import RATE, SMALL, World, voice

QUICK = FeatureSettings(parts=("mfcc", "rms"), mfcc=13, statistics=("mean", "std"))


@pytest.fixture
def index(world: World, tmp_path: Path) -> Path:
    """A copy of the rendering, without any features yet."""
    shutil.copytree(world.images, tmp_path / "index", ignore=shutil.ignore_patterns(features.FOLDER))
    return tmp_path / "index"


def test_features_match_librosa_and_scipy() -> None:
    samples = voice(1.5)
    vector, names = handmade(samples, RATE, FeatureSettings())
    found = dict(zip(names, vector, strict=True))
    size, hop = 1024, 256
    mfcc = librosa.feature.mfcc(y=samples, sr=RATE, n_mfcc=40, n_fft=size, hop_length=hop)
    courses = {
        "mfcc0": mfcc[0],
        "mfcc39": mfcc[39],
        "delta5": librosa.feature.delta(mfcc, mode="nearest")[5],
        "chroma3": librosa.feature.chroma_stft(y=samples, sr=RATE, tuning=0.0, n_fft=size, hop_length=hop)[3],
        "centroid": librosa.feature.spectral_centroid(y=samples, sr=RATE, n_fft=size, hop_length=hop)[0],
        "bandwidth": librosa.feature.spectral_bandwidth(y=samples, sr=RATE, n_fft=size, hop_length=hop)[0],
        "rolloff": librosa.feature.spectral_rolloff(y=samples, sr=RATE, n_fft=size, hop_length=hop)[0],
        "zero_crossings": librosa.feature.zero_crossing_rate(samples, frame_length=size, hop_length=hop)[0],
    }
    moments = {"mean": np.mean, "std": np.std, "skewness": scipy.stats.skew, "kurtosis": scipy.stats.kurtosis}
    for name, course in courses.items():
        for statistic, moment in moments.items():
            assert found[f"{name}_{statistic}"] == pytest.approx(moment(course), rel=1e-3, abs=1e-3), (name, statistic)


def test_features_cover_every_part_and_statistic_with_finite_values() -> None:
    vector, names = handmade(voice(), RATE, FeatureSettings())
    assert len(set(names)) == len(names) == len(vector)
    assert np.isfinite(vector).all()
    for part in PARTS:
        for statistic in STATISTICS:
            assert any(name.startswith(part) and name.endswith(statistic) for name in names)
    single, _ = handmade(voice(), RATE, replace(QUICK, mfcc=40, parts=("mfcc",), statistics=("mean",)))
    assert len(single) == 40


def test_a_clip_shorter_than_a_frame_has_finite_features() -> None:
    vector, _ = handmade(voice(0.02), RATE, FeatureSettings())
    assert np.isfinite(vector).all()


def test_features_of_copies_use_the_augmentation_of_the_pictures(index: Path) -> None:
    found = extract(index, QUICK, workers=1)
    table, names = found.rows, found.names
    row = table[(table["copy"] == 2)].iloc[3]
    settings = AugmentSettings(**read_json(index / SETTINGS)["augment"])
    drawn = augment.sample(settings, row["clip_id"], 2)
    assert drawn.to_json() == row["parameters"]
    altered = augment.apply(spectrogram.read(row["path"], SMALL), SMALL.sample_rate, drawn)
    expected, expected_names = describe(altered, SMALL, QUICK)
    assert names == expected_names
    np.testing.assert_allclose(row[names].to_numpy(np.float32), expected, rtol=1e-5)


def test_feature_rows_match_the_index(index: Path) -> None:
    whole, _ = read_index(index)
    found = extract(index, QUICK, workers=1)
    pd.testing.assert_frame_equal(found.rows.drop(columns=found.names), whole)
    untouched = extract(index, QUICK, copies=False, workers=1).rows
    assert set(untouched["copy"]) == {0}
    assert len(untouched) == (whole["copy"] == 0).sum()


def test_only_missing_or_changed_features_are_computed(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    original = features._describe_clip
    monkeypatch.setattr(
        features, "_describe_clip", lambda job, **rest: made.append(job.clip_id) or original(job, **rest)
    )
    first = extract(index, QUICK, copies=False, workers=1).rows
    assert len(made) == len(first)
    made.clear()
    again = extract(index, QUICK, copies=False, workers=1).rows
    assert not made
    pd.testing.assert_frame_equal(first, again)

    recording = Path(first["path"].iloc[4])
    status, content = recording.stat(), recording.read_bytes()
    os.utime(recording)
    extract(index, QUICK, copies=False, workers=1)
    assert not made  # the content is the same
    try:
        recording.write_bytes(content[:5000] + bytes([content[5000] ^ 3]) + content[5001:])
        os.utime(recording, ns=(status.st_atime_ns, status.st_mtime_ns))
        extract(index, QUICK, copies=False, workers=1)
        assert made == [first["clip_id"].iloc[4]]
    finally:
        recording.write_bytes(content)
    made.clear()
    store = next((index / features.FOLDER).glob("*.lock"))
    with held(store), pytest.raises(FeatureError, match="another run is computing these features"):
        extract(index, QUICK, copies=False, workers=1)
    extract(index, QUICK, copies=False, workers=1)
    made.clear()
    extract(index, replace(QUICK, mfcc=12), copies=False, workers=1)
    assert len(made) == len(first)


def test_a_damaged_feature_store_is_rebuilt(index: Path) -> None:
    first = extract(index, QUICK, copies=False, workers=1).rows
    (store,) = (index / features.FOLDER).glob("*.parquet")
    store.write_bytes(store.read_bytes()[:100])
    again = extract(index, QUICK, copies=False, workers=1).rows
    pd.testing.assert_frame_equal(first, again)


def test_a_broken_recording_is_left_out_without_affecting_others(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, _ = read_index(index)
    good = table[table["copy"] == 0].head(3).copy()
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    good.iloc[1, good.columns.get_loc("path")] = str(broken)
    good.to_parquet(index / "index.parquet")
    found = extract(index, QUICK, workers=1)
    assert list(found.rows["clip_id"]) == list(good["clip_id"].iloc[[0, 2]])
    (failure,) = found.failures
    assert "broken.wav" in failure

    settings = ClassicalSettings(index=index, features=QUICK, out=tmp_path / "run", inner_folds=0, workers=1)
    table.loc[table["clip_id"] == good["clip_id"].iloc[1], "path"] = str(broken)
    table.to_parquet(index / "index.parquet")
    run = classical(settings)
    assert len(run.training.left_out) == 1
    given = ["--index", str(index), "--features.parts", '["mfcc","rms"]', "--features.mfcc", "13", "--workers", "1"]
    assert run_verb("classical", [*given, "--inner_folds", "0", "--out", str(tmp_path / "again")]) == 1
    assert "left out:" in capsys.readouterr().err


def test_missing_recordings_are_named_and_their_stored_features_are_kept(index: Path, tmp_path: Path) -> None:
    table, _ = read_index(index)
    moved = table.assign(path=str(tmp_path / "gone.wav"))
    moved.to_parquet(index / "index.parquet")
    with pytest.raises(FeatureError, match=r"all 48 clips.*gone\.wav: the recording is gone"):
        extract(index, QUICK, workers=1)
    table.to_parquet(index / "index.parquet")
    before = extract(index, QUICK, workers=1)
    moved.to_parquet(index / "index.parquet")
    after = extract(index, QUICK, workers=1)
    assert not after.failures
    pd.testing.assert_frame_equal(before.rows[before.names], after.rows[after.names])


def test_an_unavailable_network_is_requested_only_once(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    asked: list[str] = []

    def load(model: str, _kind: str) -> None:
        asked.append(model)
        raise WeightsError("the network cannot be loaded")

    monkeypatch.setattr("spectro.baselines.speech.load", load)
    with pytest.raises(WeightsError, match="cannot be loaded"):
        extract(index, FeatureSettings(kind="speech", model="nobody/nothing"), workers=1)
    assert asked == ["nobody/nothing"]


def test_egemaps_gives_the_88_functionals(index: Path) -> None:
    pytest.importorskip("opensmile")
    vector, names = describe(voice(), SMALL, FeatureSettings(kind="egemaps"))
    assert len(names) == len(vector) == 88
    assert names[0] == "F0semitoneFrom27.5Hz_sma3nz_amean"
    high, _ = describe(voice(pitch=300.0), SMALL, FeatureSettings(kind="egemaps"))
    assert high[0] - vector[0] == pytest.approx(12, abs=0.5)  # an octave, in semitones


def test_missing_opensmile_raises_an_error_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    features._smile.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "opensmile", None)
    with pytest.raises(FeatureError, match=r"pip install 'spectro\[egemaps\]'"):
        describe(voice(), SMALL, FeatureSettings(kind="egemaps"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": ("mfcc", "pitch")}, "features.parts: unknown pitch; choose from mfcc, delta"),
        ({"parts": ()}, "features.parts is empty"),
        ({"statistics": ("median",)}, "features.statistics: unknown median"),
        ({"mfcc": 0}, "features.mfcc is 0"),
    ],
)
def test_invalid_feature_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(FeatureError, match=message):
        FeatureSettings(**changes)  # type: ignore[arg-type]


def test_the_command_prints_the_number_of_features_and_clips(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--index", str(index), "--features.parts", '["rms"]', "--copies", "false", "--workers", "1"]
    assert run_verb("features", given) == 0
    assert "4 features of 48 clips and copies" in capsys.readouterr().out
