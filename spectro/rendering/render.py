"""The rendering stage: clips x copies -> PNGs and their index.

A rendering can be killed at any moment and run again. Every PNG is moved into place complete, and records its settings
and its recording's content (size and CRC-32; at an address, size and version). A PNG that matches settings and
recording is kept, wherever the two have been copied to; any other is rendered again. The index is written last, from
the PNGs' text, so it is the same after a kill, and for any number of workers.

In the output folder: `images/CLIP_COPY.png`, `index.parquet` (the clips' columns, `image`, `copy`, `augmentation`,
`parameters`, `content_mark`, which differs between recordings of different content, and `spec`), `spec.json`,
`render.json` (the settings that pictures depend on), `failures.csv` (clips that could not be rendered, with the reason)
and `rejected.csv` (recordings that are not part of the corpus, or occur twice in it).
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from spectro.addresses import is_address
from spectro.audio import recording
from spectro.audio.augment import AugmentSettings
from spectro.cluster import Cluster, check_installed, on_cluster
from spectro.corpora import splits
from spectro.corpora.datasets import synthetic
from spectro.corpora.labels import label_clips, tally
from spectro.corpora.registry import scan
from spectro.errors import RenderError
from spectro.files import (
    fingerprint,
    path_text,
    printable,
    read_json,
    remove_leftovers,
    replacing,
    write_bytes,
    write_json,
)
from spectro.identity import identity_of
from spectro.outputs import LOCK, claimed, table_bytes
from spectro.picture.spec import SpectrogramSpec
from spectro.processes import cores, in_processes
from spectro.rendering.index import FAILURES, INDEX, REJECTED, SETTINGS, SPEC
from spectro.rendering.worker import IMAGES, Job, Outcome, Recipe, render_clips
from spectro.schema import check_least

TOGETHER = 16  # pictures handed to a process at a time


@dataclass(frozen=True, kw_only=True)
class RenderSettings:
    """Render every clip of a corpus, and augmented copies of it, as log-mel spectrogram PNGs.

    Run it again after an interruption: finished pictures are kept. Exit code 1 means that some clips could not be
    rendered; failures.csv lists them with the reason, and all others are complete.

    Args:
        corpus: synthetic, ravdess, ravdess-song, crema-d, tess, savee, emodb, emovo, anad, eyase or urdu. folder reads
            any folder of CLASS/clip.wav, or a CSV with the columns path, label, speaker; a path may be an address, such
            as s3://bucket/clip.wav.
        source: folder (or CSV) of the corpus; null for data/corpora/CORPUS. The synthetic corpus is generated.
        out: folder for pictures and index; null for data/images/CORPUS.
        copies: augmented copies per clip, in addition to the untouched one.
        augment: how copies are altered.
        spec: definition of the pictures. --spec FILE reads a spec.json or a checkpoint's spectro.json; --spec mn04_as
            uses the spec of those starting weights (`spectro weights` lists them); --spec.FIELD changes one field.
        protocol: make copies only of the training clips of this protocol; null makes copies of all clips, and training
            uses those of its own clips.
        fold: fold of that protocol.
        workers: number of processes; 0 for one per core.
        cluster: distribute the work with Ray, instead of workers: auto uses the cluster that this machine belongs to,
            HOST:6379 the one with this head, local one that is started here. All its machines must have the same
            spectro, and see source and out at the same paths as this one. null uses this machine only.
        max_duration_s: recordings longer than this fail, in seconds.
        overwrite: replace pictures rendered with other settings, instead of refusing.
    """

    corpus: str = "synthetic"
    source: Path | None = None
    out: Path | None = None
    copies: int = 0
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    spec: SpectrogramSpec = field(default_factory=SpectrogramSpec)
    protocol: str | None = None
    fold: int = 0
    workers: int = 0
    cluster: str | None = None
    max_duration_s: float = recording.DEFAULT_MAX_DURATION_S
    overwrite: bool = False


@dataclass(frozen=True)
class Rendering:
    """The result of a rendering.

    Args:
        out: the output folder.
        images: pictures in the index.
        reused: how many of them already existed.
        failures: rows of `failures.csv`.
        rejected: rows of `rejected.csv`.
    """

    out: Path
    images: int
    reused: int
    failures: int
    rejected: int


def render(settings: RenderSettings) -> Rendering:
    """Render a corpus.

    Returns:
        the counts of pictures and failures.

    Raises:
        RenderError: the output folder holds pictures with other settings, another rendering is writing there, or a
            machine of the cluster renders to a disk that is not seen here.
        WorkerError: a worker was killed.
        CorpusError: the corpus cannot be read.
        SpecError: the spec contradicts itself.
    """
    if settings.cluster is not None:
        check_installed()
    check_least(settings, RenderError, copies=0, workers=0)
    if settings.copies and find_spec("librosa") is None:
        raise RenderError(
            "augmented copies need the package librosa: install spectro[train], or render without --copies"
        )
    source = settings.source or Path("data/corpora") / settings.corpus
    out = settings.out or Path("data/images") / settings.corpus
    if settings.corpus == "synthetic" and settings.source is None:
        synthetic.write(source)
    found = scan(settings.corpus, source)
    for line in (tally(found.clips, "emotion"), *found.remarks):
        print(line, file=sys.stderr)
    with claimed(
        [out / name for name in (INDEX, SPEC, SETTINGS, FAILURES, REJECTED, IMAGES)],
        lock=out / LOCK,
        error=RenderError,
        inputs=[source],
        known=_is_rendering(out),
        run="rendering",
    ):
        _check_settings(settings, out)
        jobs = _jobs(found.clips, settings)
        outcomes = sorted(_work(jobs, settings, out), key=lambda outcome: (outcome.clip_id, outcome.copy))
        return _write_index(found.clips, found.rejected, outcomes, settings, out)


def _settings_dict(settings: RenderSettings) -> dict[str, Any]:
    """Return the settings that pictures depend on."""
    return {"spec": identity_of(settings.spec), "augment": identity_of(settings.augment)}


def _is_rendering(out: Path) -> bool:
    """Return whether a folder holds the settings of a rendering, which are written before anything else."""
    found = read_json(out / SETTINGS)
    return isinstance(found, dict) and {"spec", "augment"} <= set(found)


def _check_settings(settings: RenderSettings, out: Path) -> None:
    """Refuse to mix pictures with different settings, and save the settings."""
    path, wanted = out / SETTINGS, _settings_dict(settings)
    if path.exists() and not settings.overwrite:
        before = read_json(path)
        if not isinstance(before, dict) or set(before) != set(wanted):
            raise RenderError(f"{printable(path)}: is damaged; choose another --out, or --overwrite true")
        changes = [
            f"{part}.{key} {before[part].get(key)!r} -> {wanted[part].get(key)!r}"
            for part in wanted
            for key in {**before[part], **wanted[part]}
            if before[part].get(key) != wanted[part].get(key)
        ]
        if changes:
            raise RenderError(
                f"{printable(out)}: was rendered with other settings ({', '.join(changes)}); "
                "choose another --out, or render it again with --overwrite true"
            )
    if read_json(path) != wanted:
        (out / INDEX).unlink(missing_ok=True)  # it would describe pictures that are replaced one by one
    write_json(path, wanted)
    write_json(out / SPEC, settings.spec.to_dict())


def _jobs(clips: pd.DataFrame, settings: RenderSettings) -> list[Job]:
    copied = set(clips["clip_id"])
    if settings.protocol is not None:
        labelled, _labels = label_clips(clips, "emotion")
        part = splits.split(labelled, settings.protocol, settings.fold).part
        copied = {clip_id for clip_id in copied if part.get(clip_id) == "train"}
    return [
        Job(clip_id, path, settings.copies if clip_id in copied else 0)
        for clip_id, path in zip(clips["clip_id"], clips["path"], strict=True)
    ]


def _work(jobs: list[Job], settings: RenderSettings, out: Path) -> Iterator[Outcome]:
    """Render in processes and show progress; yield outcomes as they arrive."""
    (out / IMAGES).mkdir(parents=True, exist_ok=True)
    remove_leftovers(out / IMAGES)
    mark = fingerprint(_settings_dict(settings))
    recipe = Recipe(out.absolute(), settings.spec, settings.augment, settings.max_duration_s, mark)
    some = max(1, TOGETHER // (1 + settings.copies))
    chunks = (jobs[start : start + some] for start in range(0, len(jobs), some))
    work = partial(render_clips, recipe=recipe)
    if settings.cluster is None:
        rounds = in_processes(work, chunks, settings.workers or cores())
    else:
        rounds = on_cluster(work, _absolute(chunks), Cluster(address=settings.cluster))
    failed = 0
    with tqdm(total=len(jobs), desc="rendering", unit="clip") as progress:
        for outcomes in chain.from_iterable(rounds):
            failed += any(outcome.error for outcome in outcomes)
            progress.set_postfix(failed=failed, refresh=False)
            progress.update()
            _check_seen(outcomes, out, settings)
            yield from outcomes


def _check_seen(outcomes: Iterable[Outcome], out: Path, settings: RenderSettings) -> None:
    """Raise RenderError if another machine rendered to a disk that this one does not see."""
    for outcome in outcomes:
        if settings.cluster is not None and outcome.image and not (out / outcome.image).is_file():
            raise RenderError(
                f"{printable(out / outcome.image)}: a machine of the cluster rendered it, but it is not here; name an "
                "--out that all machines of the cluster share"
            )


def _absolute(chunks: Iterable[list[Job]]) -> Iterator[list[Job]]:
    """Yield jobs with absolute paths, which are the same on all machines."""
    for jobs in chunks:
        yield [replace(job, path=job.path if is_address(job.path) else str(Path(job.path).absolute())) for job in jobs]


def _write_index(
    clips: pd.DataFrame, rejected: pd.DataFrame, outcomes: list[Outcome], settings: RenderSettings, out: Path
) -> Rendering:
    done = [outcome for outcome in outcomes if not outcome.error]
    failed = [outcome for outcome in outcomes if outcome.error]
    paths = dict(zip(clips["clip_id"], clips["path"], strict=True))
    failures = pd.DataFrame(
        [(path_text(paths[o.clip_id]), o.clip_id, o.copy, o.error) for o in failed],
        columns=["path", "clip_id", "copy", "reason"],
    )
    write_bytes(out / FAILURES, table_bytes(failures))
    write_bytes(out / REJECTED, table_bytes(rejected))
    if not done:
        raise RenderError(f"none of {len(clips)} clips could be rendered; the first error: {failed[0].error}")
    images = pd.DataFrame(
        {
            "clip_id": pd.array([o.clip_id for o in done], dtype="string"),
            "image": pd.array([o.image for o in done], dtype="string"),
            "copy": [o.copy for o in done],
            "augmentation": pd.array([o.augmentation for o in done], dtype="string"),
            "parameters": pd.array([o.parameters for o in done], dtype="string"),
            "content_mark": pd.array([o.content for o in done], dtype="string"),
            "spec": pd.array([settings.spec.fingerprint] * len(done), dtype="string"),
        }
    )
    printed = clips.assign(path=[path_text(path) for path in clips["path"]])
    index = images.merge(printed, on="clip_id", validate="many_to_one", sort=False)
    columns = [*clips.columns, *(column for column in images.columns if column != "clip_id")]
    with replacing(out / INDEX) as temporary:
        index[columns].to_parquet(temporary, index=False)
    reused = sum(outcome.reused for outcome in done)
    return Rendering(out, len(done), reused, len(failures), len(rejected))
