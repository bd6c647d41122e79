"""The settings of a study."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import msgspec
from msgspec import Meta

from spectro.corpora.splits import OF_RAVDESS, Part
from spectro.errors import EvaluationError
from spectro.model.pretrained import SPECS
from spectro.schema import check_least, typed

Verb: TypeAlias = Literal["finetune", "classical", "speech"]
Names: TypeAlias = str | list[str] | None

VERBS: tuple[Verb, ...] = get_args(Verb)
"""The verbs that train systems."""
CHOSEN = ("out", "index", "protocol", "fold", "labels", "seed")
"""Options of a run that the study sets itself."""


class _Options(msgspec.Struct):
    """What a study reads of a system's options; the verb that trains it reads the others."""

    verb: Verb = VERBS[0]
    images: Names = None
    more_images: Names = None
    protocols: Names = None
    seeds: Annotated[list[int], Meta(min_length=1)] | None = None
    augmented: dict[str, Any] | None = None
    features: dict[str, Any] | None = None
    teachers: list[str] | None = None


class _Rendering(msgspec.Struct):
    """What a study reads of a rendering's options; `spectro render` reads the others."""

    protocols: Names = None


OWN = ("verb", "images", "more_images", "protocols", "seeds")
"""Options of a system that its verb does not have."""


@dataclass(frozen=True, kw_only=True)
class System:
    """A system of a study.

    Args:
        name: its name.
        verb: the verb that trains it.
        images: names of the renderings that it is trained and measured on, each in turn.
        more_images: names of renderings of other corpora that it is trained on beside each of these.
        protocols: names of its protocols.
        seeds: seeds of its runs.
        options: options of its verb.
        augmented: options that change where augmentation is on; None if the system has no such runs.
    """

    name: str
    verb: Verb
    images: tuple[str, ...]
    more_images: tuple[str, ...]
    protocols: tuple[str, ...]
    seeds: tuple[int, ...]
    options: dict[str, Any]
    augmented: dict[str, Any] | None


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
        images: renderings by name: options of `spectro render`; `spec` may be the name of a spec. `protocols` names the
            protocols by which a rendering's speakers are split (default: the study's).
        base: by verb (finetune, classical, speech): options of all its runs.
        systems: systems by name: the `verb` that trains it (default finetune), and options beyond `base`. `images`,
            `protocols` and `seeds` name its renderings, protocols and seeds (default: the study's). `more_images` names
            renderings of other corpora that a fine-tuned system is trained on, too, but not measured on; this needs
            RAVDESS's protocols. `teachers` may name fine-tuned systems above it: their networks for the same fold and
            seed. `augmented` holds the options for runs with augmentation.
        averages: averages of systems' probabilities by name: the systems, each with all its seeds, on one rendering and
            with or without augmentation. If a system is left out, or set to null, its averages are left out.
        augmentation: for systems with `augmented`: run without, with, or both.
        protocols: folds by protocol.
        labels: label schemes.
        seeds: seeds of systems that name none.
        test: enter test figures; false while designs are compared.
        transductive: add a second row with a fine-tuned run's transductive test figures; see `evaluate`.
        jobs: runs at a time, which share the threads; 0 for one per core with 2 GiB of memory each, and one if there is
            a GPU.
        cluster: train and evaluate with Ray, one run per process: auto uses the cluster that this machine belongs to,
            HOST:6379 the one with this head, local one that is started here. All its machines must see the working
            folder, and the files that the study names, at the same paths. Renderings and features are computed on this
            machine. null uses this machine only.
        cluster_cpus: CPUs for each run on a cluster.
        cluster_gpus: GPUs for each run on a cluster; may be a fraction.
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
    cluster: str | None = None
    cluster_cpus: float = 1.0
    cluster_gpus: float = 0.0
    quick: bool = False
    shorter: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("images", "systems", "protocols", "labels", "seeds", "augmentation"):
            if not getattr(self, name):
                raise EvaluationError(f"the study names no {name}")
        if empty := [name for name, folds in self.protocols.items() if not folds]:
            raise EvaluationError(f"the study names no fold of {', '.join(empty)}")
        check_least(self, EvaluationError, jobs=0)
        if self.cluster is not None and self.jobs:
            raise EvaluationError("a cluster has its own processes: leave jobs out, and see cluster_cpus")
        systems = [(name, own) for name, own in self.systems.items() if own is not None]
        if not systems:
            raise EvaluationError("the study names no systems: all are set to null")
        for name, own in [*self.images.items(), *systems, *((name, {}) for name in self.averages)]:
            if Path(str(name)).name != str(name):
                raise EvaluationError(f"{name!r} cannot be the name of a folder; choose another")
            if not isinstance(own, dict):
                raise EvaluationError(f"the study sets {name} to {own!r}; it lists settings")
        for name, own in self.images.items():
            if unknown := [one for one in self.protocols_of(name) if one not in self.protocols]:
                raise EvaluationError(f"the images {name} run under {', '.join(unknown)}, which the study lacks")
            spec = own.get("spec")
            if isinstance(spec, str) and spec not in SPECS and not Path(spec).is_file():
                raise EvaluationError(
                    f"the images {name} name the spec {spec}, which is no file; there are {', '.join(SPECS)}"
                )
        if unknown := [name for name in self.base if name not in VERBS]:
            raise EvaluationError(
                f"base sets options of {', '.join(unknown)}; systems are trained by {', '.join(VERBS)}"
            )
        chosen = {system.name: system for system in self.chosen_systems()}
        for name, averaged in self.averages.items():
            if averaged is not None:
                self._check_average(name, averaged, chosen)

    def _check_average(self, name: str, averaged: list[str], systems: dict[str, System]) -> None:
        if name in self.systems or len(set(averaged)) < 2 or not set(averaged) <= set(self.systems):
            raise EvaluationError(
                f"the average {name} is of {', '.join(averaged) or 'nothing'}; it needs a name of its own, and two or "
                f"more of the systems {', '.join(self.systems)}"
            )
        for system in (systems[one] for one in averaged if one in systems):
            if len(system.images) > 1 or (system.augmented is not None and len(self.augmentation) > 1):
                raise EvaluationError(
                    f"the average {name} is of {system.name}, which has several forms; give it one rendering, and no "
                    "runs with and without augmentation"
                )

    def chosen_systems(self) -> list[System]:
        """Return the systems that are not set to null.

        Raises:
            EvaluationError: a system's options are not what a study can run.
        """
        return [self._system(name, own) for name, own in self.systems.items() if own is not None]

    def _system(self, name: str, own: dict[str, Any]) -> System:
        if (named := own.get("verb", VERBS[0])) not in VERBS:
            raise EvaluationError(f"system {name} names the verb {named}; systems are trained by {', '.join(VERBS)}")
        try:
            verb = typed(own, _Options).verb
            options = merged(self.base.get(verb, {}), own)
            known = typed(options, _Options)
        except ValueError as error:
            raise EvaluationError(f"system {name}: {error}") from error
        images = _listed(known.images) or tuple(self.images)
        protocols = _listed(known.protocols) or tuple(self.protocols)
        more = _listed(known.more_images) or ()
        if more and verb != "finetune":
            raise EvaluationError(f"system {name} has more_images, but {verb} trains on one rendering")
        if more and (others := [one for one in protocols if one not in OF_RAVDESS]):
            raise EvaluationError(
                f"system {name} has more_images, but under {', '.join(others)} their speakers would be tested, too; "
                f"give it protocols among {', '.join(OF_RAVDESS)}"
            )
        if both := [one for one in more if one in images]:
            raise EvaluationError(f"system {name} is measured on its more_images {', '.join(both)}; list its images")
        if unknown := [one for one in (*images, *more) if one not in self.images]:
            raise EvaluationError(f"system {name} reads the images {', '.join(unknown)}, which the study lacks")
        if unknown := [one for one in protocols if one not in self.protocols]:
            raise EvaluationError(f"system {name} runs under {', '.join(unknown)}, which the study lacks")
        if not any(set(protocols) & set(self.protocols_of(one)) for one in images):
            raise EvaluationError(
                f"system {name} has no run: no protocol of its own ({', '.join(protocols)}) is one of its images'"
            )
        augmented = known.augmented or {}
        if fixed := [key for key in OWN if key in augmented]:
            raise EvaluationError(f"system {name} sets {', '.join(fixed)} where augmentation is on; set it for both")
        every = {**options, **augmented}
        if taken := [key for key in CHOSEN if key in every]:
            raise EvaluationError(f"system {name} sets {', '.join(taken)}, which the study chooses")
        if every.get("train_on") == "all" or "estimate" in every:
            raise EvaluationError(f"system {name} trains on all speakers; a study measures on those that it holds out")
        return System(
            name=name,
            verb=verb,
            images=images,
            more_images=more,
            protocols=protocols,
            seeds=tuple(known.seeds or self.seeds),
            options={key: value for key, value in options.items() if key not in (*OWN, "augmented")},
            augmented=known.augmented,
        )

    def protocols_of(self, images: str) -> tuple[str, ...]:
        """Return the protocols by which a rendering's speakers are split.

        Raises:
            EvaluationError: the rendering does not list names.
        """
        try:
            named = typed(self.images[images], _Rendering).protocols
        except ValueError as error:
            raise EvaluationError(f"images {images}: {error}") from error
        return _listed(named) or tuple(self.protocols)

    def rendering(self, name: str) -> dict[str, Any]:
        """Return the options of `spectro render` for a rendering, with the fields of a spec in place of its name."""
        options = {key: value for key, value in self.images[name].items() if key != "protocols"}
        spec = options.get("spec")
        return options | {"spec": SPECS[spec].to_dict()} if isinstance(spec, str) and spec in SPECS else options

    def chosen_averages(self) -> list[tuple[str, list[str]]]:
        """Return the averages that are not set to null, and whose systems are not either."""
        chosen = {name for name, own in self.systems.items() if own is not None}
        return [(name, own) for name, own in self.averages.items() if own is not None and set(own) <= chosen]

    def shortened(self) -> "StudySettings":
        """Return the study that is run: this one, or the quick one that it describes.

        Raises:
            EvaluationError: `shorter` sets an unknown option, or one to a value that does not fit.
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
        """Path of the page."""
        return self.report or self.runs / f"{self.table.stem}.html"

    @property
    def part(self) -> Part:
        """The speakers whose figures are reported."""
        return "test" if self.test else "valid"

    @property
    def pooled(self) -> Path:
        """Path of the table of pooled figures."""
        return self.table.with_name(f"{self.page.stem}-pooled.csv")


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `base` updated with `changes`; nested groups of settings are merged in the same way."""
    groups = {
        name: merged(base[name], value)
        for name, value in changes.items()
        if isinstance(value, dict) and isinstance(base.get(name), dict)
    }
    return base | changes | groups


def _listed(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())
