"""A study: systems x pictures x protocols x folds x label schemes x seeds, with one row each in a CSV.

Every run is a process that executes `spectro VERB --config RUN.yaml`. Its memory is freed when it ends, a crash costs
one run, and anyone can repeat a single row. A row is added when its run ends. A study that is started again skips the
rows that it has, and continues an interrupted fine-tuning from its last complete epoch.

Compare designs with `test: false`, which measures on validation speakers only.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import chdir
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from tqdm import tqdm

from spectro import processes
from spectro.cluster import Cluster, check_installed, on_cluster
from spectro.corpora.splits import LEAKS
from spectro.errors import EvaluationError
from spectro.evaluate.report import METRICS_FILE, RUN_FILE
from spectro.files import MESSAGE, fingerprint, held, printable, read_json, write_bytes
from spectro.model.metadata import DESCRIPTION_FILE, Result
from spectro.outputs import check_ours, claimed, lock_of
from spectro.rendering.index import FAILURES
from spectro.schema import typed
from spectro.study.grid import Run, grid
from spectro.study.page import is_page, read_published, write_page
from spectro.study.pooled import read_pooled, write_pooled
from spectro.study.results import entries, report_folder
from spectro.study.runner import command
from spectro.study.settings import StudySettings


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the study's table: one run, or its transductive figures.

    Args:
        system: name of the system.
        augmented: whether augmentation was on; None if the system has no options for it.
        backbone: its network, or its classifier.
        config: fingerprint of everything that its figures depend on, apart from fold and seed.
        corpus: the corpora, joined by +.
        labels: label scheme.
        protocol: protocol.
        fold: fold of the protocol.
        seed: seed of the training.
        epoch: number of the best epoch, from 0; None if it is not trained in epochs.
        valid_uar: UAR on the validation speakers; None if nobody is validated on.
        test_wa: accuracy on the test speakers; None in a study with `test: false`, as the next two.
        test_uar: UAR on the test speakers.
        test_f1: macro F1 on the test speakers.
        parameters: number of trainable parameters.
        train_s: duration of the training, in seconds.
        clip_ms: time from a recording to its label, in milliseconds; None if it was not measured.
        transductive: whether the figures are those after adaptation to each test speaker without labels.
    """

    system: str
    augmented: bool | None
    backbone: str
    config: str
    corpus: str
    labels: str
    protocol: str
    fold: int
    seed: int
    epoch: int | None
    valid_uar: float | None
    test_wa: float | None
    test_uar: float | None
    test_f1: float | None
    parameters: int | None
    train_s: float | None
    clip_ms: float | None
    transductive: bool


COLUMNS = tuple(one.name for one in fields(Row))
KEY = ("config", "fold", "seed", "transductive")
FIGURES = ("wa", "uar", "f1")
LOCK, RESULT = ".lock", "chosen"
RUN_MEMORY = 2 * 2**30  # bytes; a MobileNet's fine-tuning takes half of that


def study(settings: StudySettings) -> tuple[pd.DataFrame, dict[str, str]]:
    """Run the missing runs of a study, and write its page.

    Returns:
        the table, with the columns of `Row`; and why runs failed, by the run's name.

    Raises:
        EvaluationError: a rendering failed, the table is not a study's, two runs are the same, or another study uses
            the same folder.
    """
    settings = settings.shortened()
    cluster = None
    if settings.cluster is not None:
        check_installed()
        cluster = Cluster(address=settings.cluster, cpus=settings.cluster_cpus, gpus=settings.cluster_gpus)
    check_distinct(list(grid(settings)))
    read_published(settings.published)  # fails now, not after hours of training
    with held(settings.runs / LOCK) as free:
        if not free:
            raise EvaluationError(f"{printable(settings.runs)}: another study works there; wait, or name other --runs")
        page, way_out = settings.page, "choose another --report"
        check_ours([page], error=EvaluationError, known=is_page(page), edited=[page], way_out=way_out)
        _read(settings.table)  # a file that is not a study's must not count as ours
        read_pooled(settings.pooled)
        with claimed(
            [settings.table, settings.pooled, page],
            lock=lock_of(settings.table),
            error=EvaluationError,
            inputs=[] if settings.published is None else [settings.published],
            known=True,  # tables by their columns, above
            edited=[settings.table, settings.pooled, page],
            run="study",
            way_out="choose another --table",
        ):
            return _study(settings, cluster)


def _study(settings: StudySettings, cluster: Cluster | None) -> tuple[pd.DataFrame, dict[str, str]]:
    runs, table = list(grid(settings)), _read(settings.table)
    missing = with_teachers(unfinished(runs, table, settings), settings)
    failed: dict[str, str] = {}
    for name in dict.fromkeys(name for run in missing for name in (run.images, *run.more_images)):
        failed |= _render(settings, name)
    failed |= _describe(settings, missing)
    startable = [run for run in missing if run.name not in failed]
    with tqdm(desc="runs", total=len(runs), initial=len(runs) - len(startable), unit="run") as progress:
        for wave in sorted({run.wave for run in startable}):
            own = [run for run in startable if run.wave == wave]
            for run in own:
                if lost := [name for name, teacher in run.teachers.items() if teacher.name in failed]:
                    failed[run.name] = f"its teacher {', '.join(lost)} failed"
            for name, found in _results(settings, [run for run in own if run.name not in failed], cluster):
                if isinstance(found, str):
                    failed[name] = found
                    tqdm.write(f"failed: {name}: {found}")
                else:
                    table = with_rows(table, found)
                    write_bytes(settings.table, table.to_csv(index=False).encode())
                progress.update()
    systems = list(entries(settings, table, {run.key: settings.runs / run.name / RESULT for run in runs}))
    pooled = write_pooled(settings, systems)
    if settings.test and systems:
        write_page(settings, systems, pooled)
    return table, failed


def _results(
    settings: StudySettings, runs: list[Run], cluster: Cluster | None
) -> Iterator[tuple[str, list[Row] | str]]:
    """Train and measure runs, here or on a cluster; yield each one's name, and its rows or why it failed."""
    if cluster is not None:
        yield from on_cluster(partial(_train_in, Path.cwd(), settings, max(1, int(cluster.cpus))), runs, cluster)
        return
    jobs = settings.jobs or possible_jobs()
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(_train, settings, max(1, processes.threads() // jobs), run) for run in runs]
        try:
            for future in as_completed(waiting):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # an interrupted study starts no further run


def check_distinct(runs: list[Run]) -> None:
    """Refuse runs that share a row or a folder.

    Raises:
        EvaluationError: two runs have equal settings; the text names them.
    """
    seen: dict[tuple[str, int, int], Run] = {}
    for run in runs:
        other = seen.setdefault(run.key, run)
        if other is not run:
            raise EvaluationError(f"the study has the same run twice: {other.name} and {run.name} have equal settings")


def possible_jobs() -> int:
    """Return how many runs fit on this machine, by cores and free memory; one if there is a GPU."""
    if torch.cuda.is_available():
        return 1
    return max(1, min(processes.cores(), int(psutil.virtual_memory().available // RUN_MEMORY)))


def unfinished(runs: list[Run], table: pd.DataFrame, settings: StudySettings) -> list[Run]:
    """Return the runs that have no row in the table, or whose row lacks the test figures that are now wanted."""
    kept = table[table["test_uar"].notna()] if settings.test else table
    done = set(kept[list(KEY)].itertuples(index=False, name=None))
    return [run for run in runs if any((*run.key, kind) not in done for kind in kinds(run, settings))]


def with_teachers(missing: list[Run], settings: StudySettings) -> list[Run]:
    """Return runs together with those of their teachers whose checkpoints are gone."""
    found = {run.name: run for run in missing}
    for run in missing:
        for teacher in run.teachers.values():
            if not (settings.runs / teacher.name / RESULT / DESCRIPTION_FILE).exists():
                found |= {one.name: one for one in with_teachers([teacher], settings)}
    return list(found.values())


def kinds(run: Run, settings: StudySettings) -> list[bool]:
    """Return the rows that a run has, as values of `transductive`."""
    return [False, True] if settings.test and settings.transductive and run.verb == "finetune" else [False]


def with_rows(table: pd.DataFrame, found: list[Row]) -> pd.DataFrame:
    """Return the table with a run's rows, which replace older rows of the same run."""
    new = pd.DataFrame(found, columns=list(COLUMNS))
    own = set(new[list(KEY)].itertuples(index=False, name=None))
    others = [one for one in table.to_dict("records") if tuple(one[name] for name in KEY) not in own]
    return pd.DataFrame([*others, *new.to_dict("records")], columns=list(COLUMNS))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return each system's UAR, mean and standard deviation over runs; the best on validation speakers comes first."""
    names = ["protocol", "labels", "system", "augmented", "transductive", "config"]
    groups = table.groupby(names, sort=False, dropna=False)
    columns = {
        "runs": groups.size(),
        "valid_uar": groups["valid_uar"].mean(),
        "valid_sd": groups["valid_uar"].std(),
        "test_uar": groups["test_uar"].mean(),
        "test_sd": groups["test_uar"].std(),
    }
    return pd.DataFrame(columns).reset_index().sort_values("valid_uar", ascending=False, ignore_index=True)


def _read(path: Path) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame(columns=list(COLUMNS))
    try:
        table = pd.read_csv(path, dtype={"config": str})
    except ValueError:  # no CSV at all
        table = pd.DataFrame()
    if tuple(table.columns) != COLUMNS:
        raise EvaluationError(f"{printable(path)}: is not a table of a study; name another with --table")
    return table


def _render(settings: StudySettings, name: str) -> dict[str, str]:
    """Render a corpus; returns where failures are told, if some recordings could not be rendered."""
    given = {**settings.rendering(name), "out": str(settings.runs / "images" / name)}
    if settings.source is not None:
        given.setdefault("source", str(settings.source))
    folder = settings.runs / "images"
    code = command("render", given, folder / f"{name}.yaml", folder / f"{name}.log", processes.threads())
    if code not in (0, 1):
        raise EvaluationError(f"the rendering {name} failed: {_last_line(folder / f'{name}.log')}")
    told = folder / name / FAILURES
    return {f"recordings of {name}": f"not all could be rendered, see {printable(told)}"} if code == 1 else {}


def _describe(settings: StudySettings, missing: list[Run]) -> dict[str, str]:
    """Extract the features that runs share, before the runs start; returns why it failed, by the run's name."""
    failed: dict[str, str] = {}
    wanted: dict[str, tuple[dict[str, Any], list[Run]]] = {}
    for run in missing:
        if run.verb == "classical":
            given = {"index": str(settings.runs / "images" / run.images), "copies": False}
            given |= {"features": run.settings["features"]} if "features" in run.settings else {}
            known, runs = wanted.setdefault(fingerprint(given), (given, []))
            known["copies"] = known["copies"] or run.settings.get("copies") == "all"
            runs.append(run)
    for name, (given, runs) in wanted.items():
        folder = settings.runs / "features"
        log = folder / f"{name}.log"
        code = command("features", given, folder / f"{name}.yaml", log, processes.threads())
        if code not in (0, 1):
            failed |= {run.name: f"exit code {code}: {_last_line(log)} (see {printable(log)})" for run in runs}
    return failed


def _train_in(folder: Path, settings: StudySettings, threads: int, run: Run) -> tuple[str, list[Row] | str]:
    """Work as `_train`, in a folder to which the paths of the settings are relative."""
    with chdir(folder):
        return _train(settings, threads, run)


def _train(settings: StudySettings, threads: int, run: Run) -> tuple[str, list[Row] | str]:
    """Train and measure the system of a run; returns the run's name, and its rows or why it failed."""
    folder = settings.runs / run.name
    written = folder / RESULT / RUN_FILE
    written.unlink(missing_ok=True)
    for name, verb, given in stages(settings, run, threads):
        log = folder / f"{name}.log"
        code = command(verb, given, folder / f"{name}.yaml", log, threads)
        if code and not (code == 1 and written.exists()):  # some clips were left out
            return run.name, f"exit code {code}: {_last_line(log)} (see {printable(log)})"
    if (leak := result(folder / RESULT).split.leak) and run.protocol not in LEAKS:
        return run.name, f"{leak}: its figures would not be of new speakers; give other --weights"
    return run.name, [row(run, folder / RESULT, settings.test, kind) for kind in kinds(run, settings)]


def stages(settings: StudySettings, run: Run, threads: int) -> list[tuple[str, str, dict[str, Any]]]:
    """Return the commands of a run, in order: name, verb and settings."""
    folder = settings.runs / run.name
    index, *more = (str(settings.runs / "images" / name) for name in (run.images, *run.more_images))
    given = {
        **run.settings,
        "index": [index, *more] if more else index,
        "protocol": run.protocol,
        "fold": run.fold,
        "labels": run.labels,
        "seed": run.seed,
        "out": str(folder / RESULT),
    }
    if run.teachers:
        places = {name: str(settings.runs / teacher.name / RESULT) for name, teacher in run.teachers.items()}
        given["teachers"] = [places.get(one, one) for one in run.settings["teachers"]]
    if run.verb != "finetune":
        workers = {"workers": threads} if run.verb == "classical" else {}
        return [(RESULT, run.verb, {**given, **workers, "test": settings.test})]
    trained = (RESULT, "finetune", {**given, "test": settings.test})
    if not settings.test and run.settings.get("train_on", "train") != "train":
        return [trained]  # no speaker is left to measure it on
    measured = {
        "checkpoint": given["out"],
        "index": index,
        "part": settings.part,
        "transductive": settings.transductive,
    }
    return [trained, ("evaluate", "evaluate", measured)]


def result(folder: Path) -> Result:
    """Read a result: the `spectro.json` of a checkpoint, or the `run.json` of another system.

    Raises:
        EvaluationError: it is missing or damaged.
    """
    try:
        return typed(read_json(folder / DESCRIPTION_FILE) or read_json(folder / RUN_FILE), Result)
    except ValueError as error:
        raise EvaluationError(f"{printable(folder)}: holds no result ({error}); run the study again") from error


def row(run: Run, folder: Path, test: bool, transductive: bool = False) -> Row:
    """Return the row of a run.

    Args:
        run: the run.
        folder: its result folder.
        test: whether the row has test figures.
        transductive: return the transductive figures of its report.
    """
    found = result(folder)
    measured = read_json(report_folder(folder) / METRICS_FILE) or {} if test else {}
    valid = found.metrics.get("valid")
    tested = {name: getattr(found.metrics["test"], name) for name in FIGURES} if test else {}
    corpora = found.data.corpora
    if run.more_images:  # the run's own data are of several corpora
        report = read_json(report_folder(folder, "test" if test else "valid") / METRICS_FILE)
        corpora = corpora if report is None else report["corpora"]  # none if no speaker is left to measure it on
        tested = {name: measured[name]["value"] for name in FIGURES} if test else {}
    if transductive:
        valid, tested = None, {name: measured["transductive"][name]["value"] for name in FIGURES}
    return Row(
        system=run.system,
        augmented=run.augmented,
        backbone=found.backbone,
        config=run.config,
        corpus="+".join(corpora),
        labels=found.data.scheme,
        protocol=found.split.protocol,
        fold=run.fold,
        seed=run.seed,
        epoch=found.training.epoch,
        valid_uar=None if valid is None else valid.uar,
        test_wa=tested.get("wa"),
        test_uar=tested.get("uar"),
        test_f1=tested.get("f1"),
        parameters=found.parameters,
        train_s=found.training.seconds,
        clip_ms=measured.get("clip_ms"),
        transductive=transductive,
    )


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").replace("\r", "\n").strip().splitlines() if log.exists() else []
    return printable(lines[-1], MESSAGE) if lines else "it said nothing"
