"""Hand-crafted features, openSMILE's eGeMAPS and frozen speech networks: one vector per clip, kept with a rendering.

Vectors are computed from the same waveforms as the pictures of a rendering: its clips, cut and resampled as its spec
says, and its augmented copies, recreated from their seeds. They are stored in `INDEX/features/FINGERPRINT.parquet`, one
row per clip and copy, so that systems share them, an interrupted run can continue, and other tools can read them. A row
is valid while its recording's content (size and CRC-32) is unchanged.
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats
from tqdm import tqdm

from spectro.addresses import FETCHERS, Address, Place, mark_at, place
from spectro.audio import augment
from spectro.audio.augment import AugmentSettings
from spectro.audio.compiled import ensure_cache
from spectro.audio.recording import Waveform
from spectro.errors import FeatureError, SpectroError, WeightsError
from spectro.files import (
    MESSAGE,
    fingerprint,
    held,
    printable,
    read_json,
    remove_leftovers,
    replacing,
    write_json,
)
from spectro.identity import identity_of, restored
from spectro.picture import spectrogram
from spectro.picture.spec import SpectrogramSpec
from spectro.processes import cores, in_processes
from spectro.rendering.index import SETTINGS, read_index

Vector: TypeAlias = npt.NDArray[np.float32]
Frames: TypeAlias = npt.NDArray[np.float32]
Extractor: TypeAlias = Callable[[Waveform, int], Vector]

FOLDER = "features"
KEYS = ["clip_id", "copy", "identity"]
SHOWN_FAILURES = 20
KEPT_EVERY = 500  # clips; the most that a kill loses

PARTS = (
    "mfcc",
    "delta",
    "chroma",
    "logmel",
    "contrast",
    "tonnetz",
    "zero_crossings",
    "rms",
    "centroid",
    "bandwidth",
    "rolloff",
)
STATISTICS = ("mean", "std", "skewness", "kurtosis")
LOGMEL_BANDS, CHROMA = 64, 12


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """The features that describe a clip.

    Args:
        kind: handmade: the features in `parts`, summarised over time with `statistics`; egemaps: the 88 functionals of
            openSMILE's eGeMAPS (extra `egemaps`); speech: a hidden layer of a frozen speech network, averaged over time
            (extra `speech`).
        parts: hand-crafted features: mfcc, delta (of the MFCCs), chroma, logmel (64 bands), contrast, tonnetz,
            zero_crossings, rms, centroid, bandwidth, rolloff.
        mfcc: number of MFCCs; 13 and 40 are common.
        statistics: summaries over time: mean, std, skewness, kurtosis.
        model: for speech: a name on the Hugging Face hub, such as facebook/wav2vec2-base, or a local folder.
        layer: for speech: hidden layer to average; -1 is the last, 0 the input of the first layer.
    """

    kind: Literal["handmade", "egemaps", "speech"] = "handmade"
    parts: tuple[str, ...] = PARTS
    mfcc: int = 40
    statistics: tuple[str, ...] = STATISTICS
    model: str = "facebook/wav2vec2-base"
    layer: int = -1

    def __post_init__(self) -> None:
        for name, known in (("parts", PARTS), ("statistics", STATISTICS)):
            if not (chosen := getattr(self, name)):
                raise FeatureError(f"features.{name} is empty; choose from {', '.join(known)}")
            if unknown := [one for one in chosen if one not in known]:
                raise FeatureError(f"features.{name}: unknown {', '.join(unknown)}; choose from {', '.join(known)}")
        if not 1 <= self.mfcc <= 128:
            raise FeatureError(f"features.mfcc is {self.mfcc}; it must lie between 1 and 128")

    def identity(self) -> dict[str, Any]:
        """Return the settings that the vectors depend on, as JSON values."""
        own = {
            "handmade": ("kind", "parts", "mfcc", "statistics"),
            "egemaps": ("kind",),
            "speech": ("kind", "model", "layer"),
        }
        identity = identity_of(self)
        chosen = {name: identity[name] for name in own[self.kind] if name in identity}
        if self.kind == "speech":
            from spectro.baselines import speech

            chosen["model"] = speech.model_identity(self.model)
        return chosen


@dataclass(frozen=True, kw_only=True)
class FeaturesSettings:
    """Compute a feature vector for every clip of a rendering and its copies, stored as Parquet with the rendering.

    Run it again after an interruption: finished clips are kept. `classical` calls it automatically.

    Args:
        index: folder of a rendering; its recordings must still be in place.
        features: the features to compute.
        copies: also compute features of augmented copies.
        workers: number of processes; 0 for one per core.
    """

    index: Path = Path("data/images/synthetic")
    features: FeatureSettings = field(default_factory=FeatureSettings)
    copies: bool = True
    workers: int = 0


@dataclass(frozen=True)
class _Job:
    """One clip, and its copies that lack vectors."""

    clip_id: str
    path: str
    identity: str
    copies: tuple[int, ...]


@dataclass(frozen=True)
class Described:
    """The features of a rendering.

    Args:
        rows: the rows of the image index that have features, with the features as further columns, float32.
        names: names of the features.
        failures: clips whose features could not be computed, with the reason.
    """

    rows: pd.DataFrame
    names: list[str]
    failures: list[str]


def extract(folder: Path, settings: FeatureSettings, *, copies: bool = True, workers: int = 0) -> Described:
    """Compute the features of a rendering's clips; existing vectors are reused.

    Args:
        folder: a rendering's folder.
        settings: the features to compute.
        copies: whether to compute features of augmented copies, too.
        workers: number of processes; 0 for one per core.

    Raises:
        FeatureError: features could not be computed for any clip, a package that `settings` need is not installed, or
            another run is computing these features.
        WeightsError: a speech network is not available.
        RenderError: `folder` has no complete rendering.
    """
    index, spec = read_index(folder)
    wanted = index if copies else index[index["copy"] == 0]
    augmentation = restored(AugmentSettings, read_json(folder / SETTINGS)["augment"])
    identity = {
        "features": settings.identity(),
        "spec": identity_of(spec),
        "augment": identity_of(augmentation),
    }
    path = folder / FOLDER / f"{fingerprint(identity)}.parquet"
    kept = _read(path)
    jobs, failures = _jobs(wanted, kept)
    if jobs:
        with held(path.with_suffix(".lock")) as free:
            if not free:
                raise FeatureError(f"{printable(path)}: another run is computing these features; wait for it")
            remove_leftovers(path.parent, {path.name})
            write_json(path.with_suffix(".json"), identity)
            kept, failed = _fill(path, _read(path), jobs, settings, spec, augmentation, workers)
        failures += failed
    names = [name for name in kept.columns if name not in KEYS]
    if not names:
        raise FeatureError(f"features failed for all {len(failures)} clips, for example: {failures[0]}")
    vectors = kept.drop(columns="identity").astype({"clip_id": wanted["clip_id"].dtype})
    if jobs and failures:  # drop rows of recordings that have changed since
        vectors = vectors[~vectors["clip_id"].isin([one.partition(": ")[0] for one in failures])]
    rows = wanted.merge(vectors, on=["clip_id", "copy"], how="inner", validate="one_to_one")
    return Described(rows, names, failures)


def describe(samples: Waveform, spec: SpectrogramSpec, settings: FeatureSettings) -> tuple[Vector, list[str]]:
    """Return a waveform's feature vector, float32 of shape (features,), and the features' names.

    Raises:
        FeatureError: a package that `settings` need is not installed, or the speech network has no such layer.
        WeightsError: the speech network is not available.
    """
    if settings.kind == "handmade":
        return handmade(samples, spec.sample_rate, settings)
    if settings.kind == "egemaps":
        return _egemaps(samples, spec.sample_rate)
    from spectro.baselines import speech

    return speech.embed(samples, spec.sample_rate, settings.model, settings.layer)


def handmade(samples: Waveform, sample_rate: int, settings: FeatureSettings) -> tuple[Vector, list[str]]:
    """Return statistics over time of hand-crafted features, computed with librosa, and their names.

    Frames are about 64 ms long and 16 ms apart, a power of two of samples. A constant feature has skewness and
    kurtosis 0.

    Args:
        samples: float32 array of shape (samples,).
        sample_rate: in Hz.
        settings: the features and statistics to compute.
    """
    rows: list[Frames] = []
    names: list[str] = []
    for part, frames in _courses(samples, sample_rate, settings):
        rows.append(frames)
        names += [part] if len(frames) == 1 else [f"{part}{number}" for number in range(len(frames))]
    course = np.concatenate(rows).astype(np.float64)
    found: dict[str, Callable[[], npt.NDArray[np.float64]]] = {
        "mean": lambda: course.mean(axis=1),
        "std": lambda: course.std(axis=1),
        "skewness": lambda: _shape(course, scipy.stats.skew),
        "kurtosis": lambda: _shape(course, scipy.stats.kurtosis),
    }
    vector = np.concatenate([found[name]() for name in settings.statistics]).astype(np.float32)
    return vector, [f"{name}_{statistic}" for statistic in settings.statistics for name in names]


def _courses(samples: Waveform, sample_rate: int, settings: FeatureSettings) -> Iterator[tuple[str, Frames]]:
    """Yield each part's name and its values over time, float32 of shape (values, frames)."""
    ensure_cache()
    from librosa import feature, power_to_db, stft

    size = augment.vocoder_size(sample_rate)
    hop = size // 4
    magnitude = np.abs(stft(np.pad(samples, (0, max(0, size - len(samples)))), n_fft=size, hop_length=hop))
    power, common = magnitude**2, {"sr": sample_rate}
    mel = power_to_db(feature.melspectrogram(S=power, n_mels=128, **common))
    mfcc = feature.mfcc(S=mel, n_mfcc=settings.mfcc)
    chroma = feature.chroma_stft(S=power, n_chroma=CHROMA, tuning=0.0, **common)
    octaves = int(np.log2(sample_rate / 2 / 200))  # above 200 Hz, as librosa counts them
    made: dict[str, Callable[[], Frames]] = {
        "mfcc": lambda: mfcc,
        "delta": lambda: feature.delta(mfcc, mode="nearest"),
        "chroma": lambda: chroma,
        "logmel": lambda: power_to_db(feature.melspectrogram(S=power, n_mels=LOGMEL_BANDS, **common)),
        "contrast": lambda: feature.spectral_contrast(S=magnitude, n_bands=octaves, **common),
        "tonnetz": lambda: feature.tonnetz(chroma=chroma, **common),
        "zero_crossings": lambda: feature.zero_crossing_rate(samples, frame_length=size, hop_length=hop),
        "rms": lambda: feature.rms(S=magnitude, frame_length=size),
        "centroid": lambda: feature.spectral_centroid(S=magnitude, **common),
        "bandwidth": lambda: feature.spectral_bandwidth(S=magnitude, **common),
        "rolloff": lambda: feature.spectral_rolloff(S=magnitude, **common),
    }
    frames = mfcc.shape[1]
    for part in settings.parts:
        course = made[part]()
        yield (
            part,
            course[:, :frames]
            if course.shape[1] >= frames
            else np.pad(course, ((0, 0), (0, frames - course.shape[1])), mode="edge"),
        )


def _shape(course: npt.NDArray[np.float64], moment: Callable[..., Any]) -> npt.NDArray[np.float64]:
    """Return a standardised moment of each row; 0 for a constant row, which has none."""
    changes = course.std(axis=1) > 1e-9 * np.maximum(1.0, np.abs(course).max(axis=1))
    found = np.zeros(len(course))
    found[changes] = moment(course[changes], axis=1)
    return found


def _egemaps(samples: Waveform, sample_rate: int) -> tuple[Vector, list[str]]:
    """Return openSMILE's 88 functionals (Eyben et al., IEEE Transactions on Affective Computing 7 (2016) 190)."""
    found = _smile().process_signal(samples, sample_rate)
    return found.to_numpy(np.float32)[0], [str(name) for name in found.columns]


@lru_cache
def _smile() -> Any:
    try:
        import opensmile
    except ImportError as error:
        raise FeatureError("egemaps needs openSMILE: pip install 'spectro[egemaps]'") from error
    return opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError):
        return pd.DataFrame(columns=KEYS)  # missing or damaged: it is only a cache


def _jobs(wanted: pd.DataFrame, kept: pd.DataFrame) -> tuple[list[_Job], list[str]]:
    """Return the clips whose vectors are missing, or whose recording has changed; and the clips that are gone.

    A clip's vectors stay valid while its recording is missing.
    """
    known = {(one[0], one[1]): one[2] for one in kept[KEYS].itertuples(index=False)}
    jobs, gone = [], []
    clips = list(wanted.groupby("clip_id", sort=False))
    paths = [place(str(rows["path"].iloc[0])) for _clip_id, rows in clips]
    with ThreadPoolExecutor(FETCHERS if any(isinstance(path, Address) for path in paths) else 1) as pool:
        marks = list(pool.map(_mark, paths))
    for (clip_id, rows), path, identity in zip(clips, paths, marks, strict=True):
        if isinstance(identity, OSError):
            if any((clip_id, copy) not in known for copy in rows["copy"]):
                kind = "gone" if isinstance(identity, FileNotFoundError) else "unreadable"
                reason = f"the recording is {kind} ({identity.strerror})"
                gone.append(f"{clip_id}: {printable(path)}: {reason}; render again")
            continue
        copies = tuple(int(copy) for copy in rows["copy"] if known.get((clip_id, copy)) != identity)
        if copies:
            jobs.append(_Job(str(clip_id), str(path), identity, copies))
    return jobs, gone


def _mark(path: Place) -> str | OSError:
    try:
        return mark_at(path)
    except OSError as error:
        return error


def _fill(
    path: Path,
    kept: pd.DataFrame,
    jobs: list[_Job],
    settings: FeatureSettings,
    spec: SpectrogramSpec,
    augmentation: AugmentSettings,
    workers: int,
) -> tuple[pd.DataFrame, list[str]]:
    """Add missing rows to the table, and write it at intervals; return it, and the clips that failed."""
    count = 1 if settings.kind == "speech" else workers or cores()  # one network in memory
    work = partial(_describe_clip, settings=settings, spec=spec, augmentation=augmentation)
    rounds = in_processes(work, jobs, count)
    found: list[pd.DataFrame] = []
    failed: list[str] = []
    for done, (rows, error) in enumerate(tqdm(rounds, desc="features", total=len(jobs), unit="clip", leave=False), 1):
        found += [rows] if rows is not None else []
        failed += [error] if error else []
        if found and (done % KEPT_EVERY == 0 or done == len(jobs)):
            new = pd.concat(found)
            both = pd.concat([kept, new], ignore_index=True) if len(kept) else new
            kept = both.drop_duplicates(["clip_id", "copy"], keep="last")
            found = []
            with replacing(path) as temporary:
                kept.to_parquet(temporary, index=False)
    return kept, failed


def _describe_clip(
    job: _Job, settings: FeatureSettings, spec: SpectrogramSpec, augmentation: AugmentSettings
) -> tuple[pd.DataFrame | None, str]:
    """Return the rows of a clip and an empty string, or None and an error message."""
    vectors: list[Vector] = []
    names: list[str] = []
    try:
        samples = spectrogram.read(job.path, spec, max_duration_s=None)
        for copy in job.copies:
            drawn = augment.sample(augmentation, job.clip_id, copy) if copy else None
            altered = augment.apply(samples, spec.sample_rate, drawn) if drawn else samples
            vector, names = describe(altered, spec, settings)
            if not np.isfinite(vector).all():
                return None, f"{job.clip_id}: {printable(job.path)}: features are not finite"
            vectors.append(vector)
    except (FeatureError, WeightsError):
        raise  # a package or network is missing, so every other clip would fail, too
    except SpectroError as error:
        return None, f"{job.clip_id}: {printable(str(error), MESSAGE)}"
    rows = pd.DataFrame(np.stack(vectors), columns=names)
    rows.insert(0, "identity", job.identity)
    rows.insert(0, "copy", list(job.copies))
    rows.insert(0, "clip_id", job.clip_id)
    return rows, ""


def show_failures(failures: list[str]) -> int:
    """Print the clips whose features could not be computed; return the exit code."""
    for reason in failures[:SHOWN_FAILURES]:
        print(f"left out: {reason}", file=sys.stderr)
    if len(failures) > SHOWN_FAILURES:
        print(f"left out: {len(failures) - SHOWN_FAILURES} more", file=sys.stderr)
    return 1 if failures else 0
