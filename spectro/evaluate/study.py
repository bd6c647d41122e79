"""A study: renderings x systems x folds x seeds, each a fine-tuning of its own, one row each in a table that is kept.

Every run is a process (`spectro finetune --config RUN.yaml`), so that its memory ends with it, a crash costs one run,
and anyone can repeat a single row. A row is added when its run ends. A study that is started again leaves out the rows
that it has, and a run that was cut short goes on from its last whole epoch.

Designs are compared with `test: false`, which enters what validation speakers say and nothing else.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from tqdm import tqdm

from spectro.errors import EvaluationError
from spectro.files import fingerprint, printable, read_json, write_bytes
from spectro.learn.backbones import weights_identity
from spectro.learn.checkpoint import DESCRIPTION_FILE

COLUMNS = (
    "system",
    "backbone",
    "config",
    "corpus",
    "labels",
    "protocol",
    "fold",
    "seed",
    "epoch",
    "valid_uar",
    "test_wa",
    "test_uar",
    "test_f1",
    "parameters",
    "train_s",
    "transductive",
)
OWN = ("out", "index", "fold", "seed")
"""Settings of a fine-tuning that the study chooses itself."""


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """Run a grid of fine-tunings, and keep one row of figures a run.

    Run it again after an interruption: rows that are there are left out, unfinished runs go on.

    Args:
        table: CSV that rows are added to.
        runs: folder of the runs' checkpoints and logs, and of the renderings.
        source: folder of the corpus; null for data/corpora/CORPUS.
        weights: starting weights of all systems that name none: auto, none, or a file.
        images: renderings by name: what each sets of `spectro render`.
        base: what all runs set of `spectro finetune`.
        systems: systems by name: what each sets beyond `base`; `images` names its rendering (the first, if it names
            none), and `refit: true` trains on the validation speakers too once they have chosen the epoch.
        folds: folds of the protocol.
        seeds: seeds of the training.
        test: whether test figures are entered; false while designs are compared.
        jobs: runs at a time; the processor's threads are divided among them.
    """

    table: Path
    runs: Path = Path("checkpoints/study")
    source: Path | None = None
    weights: str = "auto"
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)
    systems: dict[str, dict[str, Any]] = field(default_factory=dict)
    folds: list[int] = field(default_factory=lambda: [0])
    seeds: list[int] = field(default_factory=lambda: [0])
    test: bool = True
    jobs: int = 1

    def __post_init__(self) -> None:
        for name in ("images", "systems", "folds", "seeds"):
            if not getattr(self, name):
                raise EvaluationError(f"the study names no {name}")
        if self.jobs < 1:
            raise EvaluationError(f"jobs is {self.jobs}; it must be 1 or more")
        for name, system in self.systems.items():
            chosen = merged(self.base, system)
            if chosen.get("images", next(iter(self.images))) not in self.images:
                raise EvaluationError(f"system {name} reads the images {chosen['images']}, which the study lacks")
            if taken := [key for key in OWN if key in chosen]:
                raise EvaluationError(f"system {name} sets {', '.join(taken)}, which the study chooses")
            if not isinstance(chosen.get("refit", False), bool):
                raise EvaluationError(f"system {name} sets refit to {chosen['refit']}; it is true or false")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One row of the grid.

    Args:
        system: name of the system.
        images: name of its rendering.
        fold: fold of the protocol.
        seed: seed of the training.
        refit: whether it is trained once more, on validation speakers too.
        settings: the other settings of its fine-tuning.
        config: fingerprint of what its figures depend on, beside fold and seed.
    """

    system: str
    images: str
    fold: int
    seed: int
    refit: bool
    settings: dict[str, Any]
    config: str

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.system}-fold{self.fold}-seed{self.seed}-{self.config[:8]}"


def study(settings: StudySettings) -> tuple[pd.DataFrame, dict[str, str]]:
    """Run what is missing of a study.

    Returns:
        the table, with the columns of `COLUMNS`; and what went wrong, by the run's name.

    Raises:
        EvaluationError: a rendering failed, or the table is not one of a study.
    """
    runs, table = list(grid(settings)), _read(settings.table)
    missing = unfinished(runs, table, settings.test)
    for name in dict.fromkeys(run.images for run in missing):
        _render(settings, name)
    failed: dict[str, str] = {}
    with (
        ThreadPoolExecutor(settings.jobs) as pool,
        tqdm(desc="runs", total=len(runs), initial=len(runs) - len(missing), unit="run") as progress,
    ):
        waiting = {pool.submit(_finetune, settings, run): run for run in missing}
        try:
            for future in as_completed(waiting):
                found = future.result()
                if isinstance(found, str):
                    failed[waiting[future].name] = found
                else:
                    table = with_row(table, found)
                    write_bytes(settings.table, table.to_csv(index=False).encode())
                progress.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # an interrupted study starts no other run
    return table, failed


def unfinished(runs: list[Run], table: pd.DataFrame, test: bool) -> list[Run]:
    """Return the runs whose row is not in the table, or lacks the test figures that are now asked for."""
    kept = table[table["test_uar"].notna()] if test else table
    done = {(str(one["config"]), int(one["fold"]), int(one["seed"])) for one in kept.to_dict("records")}
    return [run for run in runs if (run.config, run.fold, run.seed) not in done]


def with_row(table: pd.DataFrame, found: dict[str, Any]) -> pd.DataFrame:
    """Return the table with a run's row, in place of one that it had of this run."""
    key = ("config", "fold", "seed")
    others = [one for one in table.to_dict("records") if any(one[name] != found[name] for name in key)]
    return pd.DataFrame([*others, found], columns=list(COLUMNS))


def grid(settings: StudySettings) -> Iterator[Run]:
    """Yield the runs, all systems of a fold and seed before the next fold and seed."""
    for seed, fold, (name, system) in product(settings.seeds, settings.folds, settings.systems.items()):
        chosen = {"weights": settings.weights} | merged(settings.base, system)
        images = str(chosen.pop("images", next(iter(settings.images))))
        refit = bool(chosen.pop("refit", False))
        weights = weights_identity(str(chosen["weights"]))
        identity = {**chosen, "weights": weights, "images": settings.images[images], "refit": refit}
        yield Run(
            system=name,
            images=images,
            fold=fold,
            seed=seed,
            refit=refit,
            settings=chosen,
            config=fingerprint(identity),
        )


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes`, groups of settings within it likewise."""
    groups = {
        name: merged(base[name], value)
        for name, value in changes.items()
        if isinstance(value, dict) and isinstance(base.get(name), dict)
    }
    return base | changes | groups


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return mean, and standard deviation over runs, of each system's UAR, best on validation speakers first."""
    groups = table.groupby(["system", "config"], sort=False)
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
    table = pd.read_csv(path)
    if tuple(table.columns) != COLUMNS:
        raise EvaluationError(f"{printable(path)}: is not a table of a study; name another with --table")
    return table


def _render(settings: StudySettings, name: str) -> None:
    given = {**settings.images[name], "out": str(settings.runs / "images" / name)}
    if settings.source is not None:
        given["source"] = str(settings.source)
    folder = settings.runs / "images"
    code = _spectro("render", given, folder / f"{name}.yaml", folder / f"{name}.log", os.cpu_count() or 1)
    if code not in (0, 1):
        raise EvaluationError(f"the rendering {name} failed: {_last_line(folder / f'{name}.log')}")


def _finetune(settings: StudySettings, run: Run) -> dict[str, Any] | str:
    """Run one row's fine-tuning; returns the row, or what went wrong."""
    folder = settings.runs / run.name
    threads = max(1, (os.cpu_count() or 1) // settings.jobs)
    given = {
        **run.settings,
        "index": str(settings.runs / "images" / run.images),
        "fold": run.fold,
        "seed": run.seed,
        "out": str(folder / "chosen"),
    }
    stages = [given]
    if run.refit:
        stages.append({**given, "refit": given["out"], "out": str(folder / "refit")})
    for stage in stages:
        out = Path(stage["out"])
        log = folder / f"{out.name}.log"
        if code := _spectro("finetune", stage, folder / f"{out.name}.yaml", log, threads):
            return f"exit code {code}: {_last_line(log)} (see {printable(log)})"
    return row(run, read_json(out / DESCRIPTION_FILE), settings.test)


def row(run: Run, description: dict[str, Any], test: bool) -> dict[str, Any]:
    """Return a run's row, with the columns of `COLUMNS`.

    Args:
        run: the run.
        description: the `spectro.json` of its checkpoint.
        test: whether the row holds its test figures.
    """
    training, metrics = description["training"], description["metrics"]
    valid = training["refit"]["valid"] if run.refit else metrics["valid"]
    tested = metrics["test"] if test else {}
    return {
        "system": run.system,
        "backbone": description["backbone"],
        "config": run.config,
        "corpus": "+".join(description["data"]["corpora"]),
        "labels": description["data"]["labels"],
        "protocol": description["split"]["protocol"],
        "fold": run.fold,
        "seed": run.seed,
        "epoch": training["epoch"],
        "valid_uar": valid["uar"],
        **{f"test_{name}": tested.get(name) for name in ("wa", "uar", "f1")},
        "parameters": description["parameters"],
        "train_s": training["seconds"],
        "transductive": False,
    }


def _spectro(verb: str, given: dict[str, Any], config: Path, log: Path, threads: int) -> int:
    """Run a verb in a process of its own, its settings and its output kept beside its result; returns the exit code."""
    write_bytes(config, yaml.safe_dump(given, sort_keys=False).encode())
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with log.open("ab") as output:
        command = [sys.executable, "-m", "spectro", verb, "--config", str(config)]
        return subprocess.run(command, env=environment, stdout=output, stderr=output, check=False).returncode


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").replace("\r", "\n").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def run(settings: StudySettings) -> int:
    """Run the verb; returns its exit code."""
    table, failed = study(settings)
    if len(table):
        print(summary(table).to_string(index=False, float_format="{:.3f}".format, na_rep="-"))
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    print(f"{len(table)} rows in {printable(settings.table)}")
    return 1 if failed else 0
