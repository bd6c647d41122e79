"""What can be chosen in a study."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spectro.corpora.splits import Part
from spectro.errors import EvaluationError
from spectro.model.pretrained import SPECS

VERBS = ("finetune", "classical", "speech")
"""The verbs that a system can be trained by."""
NAMES = ("verb", "images", "protocols", "seeds")
"""What a system says about its runs, and no verb is told."""
OWN = ("out", "index", "protocol", "fold", "labels", "seed")
"""Settings of a run that the study chooses itself."""


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """Train and measure a grid of systems, keep one row of figures per run, and show them side by side.

    Run it again after an interruption: finished rows are skipped, and unfinished runs continue.

    Args:
        table: CSV to add rows to.
        runs: folder for the runs' checkpoints, logs and renderings.
        report: page to write, one self-contained HTML file; null for the table's name in `runs`.
        published: CSV of published figures to show next to ours: system, corpus, labels, protocol, figure, measure,
            source.
        source: folder of the corpus, for renderings that name none; null for data/corpora/CORPUS.
        weights: starting weights of fine-tuned systems that name none: auto, none, or a file.
        images: renderings by name: options of `spectro render`; `spec` may be the name of a spec.
        base: by verb (finetune, classical, speech): options of all its runs.
        systems: systems by name: the `verb` that trains it (default finetune), and options beyond `base`. `images`,
            `protocols` and `seeds` name its renderings, protocols and seeds (default: the study's). `augmented` holds
            the options for runs with augmentation.
        averages: averages of systems' probabilities by name: the systems, each with all its seeds, on one rendering and
            with or without augmentation. Of a system that is left out, or set to null, the average is left out.
        augmentation: for systems with `augmented`: run without, with, or both.
        protocols: folds by protocol.
        labels: label schemes.
        seeds: seeds of systems that name none.
        test: enter test figures; false while designs are compared.
        transductive: add a second row with a fine-tuned run's transductive test figures; see `evaluate`.
        jobs: runs at a time, which share the threads; 0 for one per core with 2 GiB of memory each, and one if there is
            a GPU.
        quick: run the study as `shorter` changes it, to see that everything works.
        shorter: options of a quick study; a system set to null is left out.
    """

    table: Path
    runs: Path = Path("checkpoints/study")
    report: Path | None = None
    published: Path | None = None
    source: Path | None = None
    weights: str = "auto"
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    base: dict[str, dict[str, Any]] = field(default_factory=dict)
    systems: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    averages: dict[str, list[str] | None] = field(default_factory=dict)
    augmentation: list[bool] = field(default_factory=lambda: [False, True])
    protocols: dict[str, list[int]] = field(default_factory=dict)
    labels: list[str] = field(default_factory=lambda: ["emotion"])
    seeds: list[int] = field(default_factory=lambda: [0])
    test: bool = True
    transductive: bool = False
    jobs: int = 0
    quick: bool = False
    shorter: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("images", "systems", "protocols", "labels", "seeds", "augmentation"):
            if not getattr(self, name):
                raise EvaluationError(f"the study names no {name}")
        if empty := [name for name, folds in self.protocols.items() if not folds]:
            raise EvaluationError(f"the study names no fold of {', '.join(empty)}")
        for name, own in self.images.items():
            spec = own.get("spec") if isinstance(own, dict) else None
            if isinstance(spec, str) and spec not in SPECS and not Path(spec).is_file():
                raise EvaluationError(
                    f"the images {name} name the spec {spec}, which is no file; there are {', '.join(SPECS)}"
                )
        for name, own in [*self.images.items(), *self.chosen_systems(), *((name, {}) for name in self.averages)]:
            if Path(str(name)).name != str(name):
                raise EvaluationError(f"{name!r} cannot be the name of a folder; choose another")
            if not isinstance(own, dict):
                raise EvaluationError(f"the study sets {name} to {own!r}; it lists settings")
        if self.jobs < 0:
            raise EvaluationError(f"jobs is {self.jobs}; it must be 0 or more")
        for name in [*self.base, *(system.get("verb", VERBS[0]) for _, system in self.chosen_systems())]:
            if name not in VERBS:
                raise EvaluationError(f"the study names the verb {name}; systems are trained by {', '.join(VERBS)}")
        for name, averaged in self.averages.items():
            if averaged is not None:
                self._check_average(name, averaged)
        for name, system in self.chosen_systems():
            self._check(name, merged(self.base.get(system.get("verb", VERBS[0]), {}), system))

    def _check_average(self, name: str, averaged: list[str]) -> None:
        if name in self.systems or len(set(averaged)) < 2 or not set(averaged) <= set(self.systems):
            raise EvaluationError(
                f"the average {name} is of {', '.join(averaged) or 'nothing'}; it needs a name of its own, and two or "
                f"more of the systems {', '.join(self.systems)}"
            )
        for one in averaged:
            system = self.systems[one] or {}
            whole = merged(self.base.get(system.get("verb", VERBS[0]), {}), system)
            if len(listed(whole.get("images", list(self.images)))) > 1 or (
                "augmented" in system and len(self.augmentation) > 1
            ):
                raise EvaluationError(
                    f"the average {name} is of {one}, which has several forms; give it one rendering, and no runs "
                    "with and without augmentation"
                )

    def _check(self, name: str, system: dict[str, Any]) -> None:
        for key, known, does in (
            ("images", self.images, "reads the images"),
            ("protocols", self.protocols, "runs under"),
        ):
            if not isinstance(named := system.get(key, []), str | list):
                raise EvaluationError(f"system {name} sets {key} to {named}; it names one or lists several")
            for one in listed(named):
                if one not in known:
                    raise EvaluationError(f"system {name} {does} {one}, which the study lacks")
        seeds = system.get("seeds", self.seeds)
        if not isinstance(seeds, list) or not seeds or any(type(one) is not int for one in seeds):
            raise EvaluationError(f"system {name} sets seeds to {seeds}; it lists whole numbers")
        for key in ("augmented", "features"):
            if not isinstance(system.get(key, {}), dict):
                raise EvaluationError(f"system {name} sets {key} to {system[key]!r}; it lists settings")
        augmented = system.get("augmented", {})
        if fixed := [key for key in NAMES if key in augmented]:
            raise EvaluationError(f"system {name} sets {', '.join(fixed)} where augmentation is on; set it for both")
        if taken := [key for key in OWN if key in {**system, **augmented}]:
            raise EvaluationError(f"system {name} sets {', '.join(taken)}, which the study chooses")
        if {**system, **augmented}.get("train_on") == "all" or "estimate" in {**system, **augmented}:
            raise EvaluationError(f"system {name} trains on all speakers; a study measures on those that it holds out")

    def rendering(self, name: str) -> dict[str, Any]:
        """Return the options of a rendering, with the fields of a spec in place of its name."""
        options = self.images[name]
        spec = options.get("spec")
        return options | {"spec": SPECS[spec].to_dict()} if isinstance(spec, str) and spec in SPECS else options

    def chosen_averages(self) -> list[tuple[str, list[str]]]:
        """Return the averages that are not set to null, and of no system that is."""
        chosen = {name for name, _system in self.chosen_systems()}
        return [(name, own) for name, own in self.averages.items() if own is not None and set(own) <= chosen]

    def chosen_systems(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the systems that are not set to null."""
        return [(name, system) for name, system in self.systems.items() if system is not None]

    def shortened(self) -> "StudySettings":
        """Return the study that is run: this one, or the quick one that it describes.

        Raises:
            EvaluationError: `shorter` sets something that a study does not know, or to what does not fit.
        """
        if not self.quick:
            return self
        own: dict[str, Any] = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        if unknown := [name for name in self.shorter if name not in own]:
            raise EvaluationError(f"shorter sets {', '.join(unknown)}, which a study does not know")
        for name, value in self.shorter.items():
            if not isinstance(value, str | None if isinstance(own[name], Path | None) else type(own[name])):
                raise EvaluationError(f"shorter sets {name} to {value!r}, which does not fit")
        changed = merged(own, self.shorter) | {"quick": False}
        paths = {name: Path(changed[name]) for name in ("table", "runs", "report") if changed[name] is not None}
        return StudySettings(**(changed | paths))

    @property
    def page(self) -> Path:
        """Where the page goes."""
        return self.report or self.runs / f"{self.table.stem}.html"

    @property
    def part(self) -> Part:
        """The speakers whose figures are told."""
        return "test" if self.test else "valid"

    @property
    def pooled(self) -> Path:
        """Where the table of pooled figures goes."""
        return self.table.with_name(f"{self.page.stem}-pooled.csv")


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes`, groups of settings within it likewise."""
    groups = {
        name: merged(base[name], value)
        for name, value in changes.items()
        if isinstance(value, dict) and isinstance(base.get(name), dict)
    }
    return base | changes | groups


def listed(names: str | list[str]) -> list[str]:
    """Return names of which there may be one alone."""
    return [names] if isinstance(names, str) else names
