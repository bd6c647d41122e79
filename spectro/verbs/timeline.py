"""The timeline verb: follow emotion through recordings of any length into a table, tracks and summaries."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from spectro.addresses import Address, Place
from spectro.audio import recording
from spectro.engines.base import EngineName, Precision
from spectro.engines.pytorch import on_gpu
from spectro.errors import AudioError, PredictionError
from spectro.files import fingerprint, path_text, printable, write_bytes, write_json
from spectro.identity import identity_of
from spectro.model.locate import default_checkpoint
from spectro.model.metadata import identity
from spectro.outputs import LOCK, claimed
from spectro.predict.inputs import expand, local, reason_of, stems
from spectro.predict.network import Network
from spectro.predict.output.tables import check_name, claimed_table, in_parts, open_table
from spectro.predict.predictor import Predictor
from spectro.predict.timeline.formats import Summary, audacity, webvtt
from spectro.predict.timeline.segments import Segment, timeline
from spectro.predict.timeline.windows import WindowSettings
from spectro.processes import in_processes, threads
from spectro.schema import check_least

ENDINGS = (".txt", ".vtt", ".json")
"""Suffixes of a recording's tracks: Audacity labels, WebVTT, summary."""
ENOUGH_S = 3600.0
"""Least length of all recordings that makes up for the start-up time of processes, in seconds."""
MOST = 100
"""Maximum number of recordings in one part of a cluster's work: long ones take minutes each."""


@dataclass(frozen=True, kw_only=True)
class TimelineSettings:
    """Follow recordings of any length: one row for each segment of one emotion or of silence.

    Memory does not grow with a recording's length. Recordings and tables may be remote, at addresses that fsspec
    supports, such as s3://bucket/calls. With --cluster or a remote table, a killed run resumes when the same command
    is run again. Exit code 1 means that some recordings failed, or failed before their end; a row gives the reason.

    Args:
        inputs: recordings, folders (searched recursively), or lists: a .txt with one path per line, or a .csv with a
            column `path`; each may be an address.
        checkpoint: checkpoint folder; null for the shipped checkpoint.
        out: output table: .csv, .jsonl, .parquet, .json, or a folder for sharded Parquet; null prints CSV. It may be an
            address.
        tracks: folder for each recording's Audacity labels (.txt), WebVTT (.vtt) and summary (.json); not with a
            cluster or a remote table.
        split_channels: treat each channel as one speaker, as in stereo recordings of calls.
        windows: how recordings are cut into windows, and windows merged.
        min_margin: give the label `unsure` if the two highest probabilities differ by less than this, 0 to 1.
        min_speech: give the label `no speech` if the probability of speech is below this, 0 to 1; 0 turns this off.
        batch_size: pictures per batch.
        workers: processes that follow recordings, each with its own network, on one thread; 0 for one per core if the
            recordings last at least an hour together. On a GPU there is one process. Not with a cluster.
        device: cpu, cuda, ...; null uses a GPU if one is available.
        engine: inference engine; auto picks the fastest one installed (onnx and openvino are extras).
        precision: float32, or bfloat16 for more speed (torch, openvino); close calls are computed in float32 either
            way.
        resume: with a cluster or a remote table, keep the rows of an earlier run of the same command.
        cluster: distribute the work with Ray: auto for the cluster that this machine belongs to, HOST:6379 for the one
            with this head node, local for one started on this machine. null uses no cluster.
        cluster_cpus: CPUs for each network in a cluster.
        cluster_gpus: GPUs for each network in a cluster, if device is cuda; with 0.25, four share one.
    """

    inputs: list[str] = field(default_factory=list)
    checkpoint: Path | None = None
    out: Address | Path | None = None
    tracks: Path | None = None
    split_channels: bool = False
    windows: WindowSettings = field(default_factory=WindowSettings)
    min_margin: float = 0.0
    min_speech: float = 0.5
    batch_size: int = 8
    workers: int = 0
    device: str | None = None
    engine: EngineName = "auto"
    precision: Precision = "float32"
    resume: bool = True
    cluster: str | None = None
    cluster_cpus: float = 1.0
    cluster_gpus: float = 1.0

    def __post_init__(self) -> None:
        check_least(self, PredictionError, batch_size=1, workers=0)
        check_name(self.out)
        if in_parts(self.out, self.cluster) and self.tracks is not None:
            raise PredictionError("tracks need a table on this machine and no cluster")
        if self.cluster is not None and self.workers:
            raise PredictionError("a cluster has its own processes: leave workers out, and see cluster_cpus")


def run(settings: TimelineSettings) -> int:
    """Run the verb; returns its exit code."""
    if in_parts(settings.out, settings.cluster):
        return _spread(settings)
    paths = list(dict.fromkeys(expand(settings.inputs)))
    if not paths:
        raise PredictionError(f"no recording in {', '.join(map(printable, settings.inputs))}")
    names, read = stems(paths), local([*settings.inputs, *paths])
    with ExitStack() as stack:
        if isinstance(settings.out, Path):
            stack.enter_context(claimed_table(settings.out, read))
        if settings.tracks:
            files = [_track(settings.tracks / name, ending) for name in names for ending in ENDINGS]
            stack.enter_context(
                claimed(
                    files,
                    lock=settings.tracks / LOCK,
                    error=PredictionError,
                    inputs=read,
                    way_out="choose another --tracks",
                )
            )
        return _run(settings, paths, names)


def _spread(settings: TimelineSettings) -> int:
    """Follow recordings in parts; returns the exit code."""
    from spectro.predict.spread import Spread, cluster_of, spread

    assert settings.out is not None
    network = Network.of(settings)
    columns = tuple(Segment(path="").record(network.labels()))
    own = [
        settings.split_channels,
        identity_of(settings.windows),
        settings.min_margin,
        settings.min_speech,
        settings.precision,
    ]
    return spread(
        Spread(
            what="following",
            inputs=settings.inputs,
            network=network,
            answer=partial(_answer, settings=settings),
            out=settings.out,
            columns=columns,
            identity=fingerprint([identity(settings.checkpoint or default_checkpoint()), columns, *own]),
            resume=settings.resume,
            fewest=1,
            most=MOST,
            workers=partial(_processes, settings, network),
            cluster=cluster_of(settings.cluster, settings.device, settings.cluster_cpus, settings.cluster_gpus),
        ),
        expand(settings.inputs),
    )


def _answer(predictor: Predictor, places: Sequence[Place], settings: TimelineSettings) -> Iterator[list[Segment]]:
    """Yield the segments of each recording."""
    return (list(_segments(predictor, one, settings)) for one in places)


def _run(settings: TimelineSettings, paths: list[Place], names: list[Path]) -> int:
    """Follow recordings into outputs that this run has claimed; returns the exit code."""
    network = Network.of(settings)
    assert not isinstance(settings.out, Address)
    lengths = [recording.duration_s(path) for path in paths]
    processes = _processes(settings, network, len(paths), long=sum(lengths) >= ENOUGH_S)
    found = _each(settings, network, paths, processes)
    failed = rows = 0
    with (
        open_table(settings.out, list(Segment(path="").record(network.labels()))) as table,
        tqdm(total=round(sum(lengths)), desc="following", unit="s", file=sys.stderr) as bar,
    ):
        for path, length, name, own in zip(paths, lengths, names, found, strict=True):
            begin = bar.n
            segments: list[Segment] = []
            for segment in own:
                table.add([segment.record(network.labels())])
                failed += bool(segment.error)
                rows += not segment.error
                bar.update(max(0, round(begin + segment.end_s) - bar.n))
                if settings.tracks and not segment.error:
                    segments.append(segment)
            if settings.tracks:
                _write_tracks(settings.tracks / name, path_text(path), segments)
            bar.update(max(0, round(begin + length) - bar.n))
    where = f" in {printable(settings.out)}" if settings.out else ""
    bad = f"; {failed} could not be used in full, see the column error" if failed else ""
    print(f"{len(paths) - failed} of {len(paths)} recordings processed to the end{where}{bad}", file=sys.stderr)
    return 0 if not failed else 1 if rows else 2


def _processes(settings: TimelineSettings, network: Network, recordings: int, *, long: bool = False) -> int:
    """Return the number of processes to use for a number of recordings."""
    if on_gpu(network.predictor().engine):
        return 1
    return max(1, min(settings.workers or (threads() if long else 1), recordings))


def _each(
    settings: TimelineSettings, network: Network, paths: list[Place], processes: int
) -> Iterator[Iterable[Segment]]:
    """Yield the segments of each recording, in order; with one process, as they are found."""
    if processes == 1:
        return (_segments(network.predictor(), path, settings) for path in paths)
    return in_processes(partial(_followed, network=network, settings=settings), paths, processes, ordered=True)


def _followed(path: Place, network: Network, settings: TimelineSettings) -> list[Segment]:
    """Return the segments of a recording; runs in a worker process."""
    return list(_segments(network.predictor(), path, settings))


def _segments(predictor: Predictor, path: Place, settings: TimelineSettings) -> Iterator[Segment]:
    """Yield the segments of a recording; if it becomes unusable, the last one gives the error."""
    end_s = 0.0
    try:
        for segment in timeline(
            predictor,
            path,
            settings.windows,
            split_channels=settings.split_channels,
            batch_size=settings.batch_size,
        ):
            end_s = segment.end_s
            yield replace(segment, path=path_text(path))
    except AudioError as error:
        yield Segment(path=path_text(path), start_s=end_s, end_s=end_s, error=reason_of(error, path))


def _write_tracks(stem: Path, path: str, segments: Sequence[Segment]) -> None:
    summary = Summary(path)
    for segment in segments:
        summary.add(segment)
    labels, captions, numbers = (_track(stem, ending) for ending in ENDINGS)
    write_bytes(labels, audacity(segments).encode())
    write_bytes(captions, webvtt(segments).encode())
    write_json(numbers, summary.content())


def _track(stem: Path, ending: str) -> Path:
    return stem.with_name(stem.name + ending)
