"""The grid of a study: which systems run on which pictures, protocols, folds, label schemes and seeds."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from spectro.errors import EvaluationError
from spectro.files import fingerprint
from spectro.model.backbones import classifier_identity, weights_identity
from spectro.study.settings import StudySettings, System, Verb, merged


@dataclass(frozen=True, kw_only=True)
class Run:
    """One row of the grid.

    Args:
        system: name of the system.
        verb: the verb that trains it.
        augmented: whether augmentation is on; None if the system has no options for it.
        images: name of its rendering.
        more_images: names of the renderings that it is only trained on.
        protocol: protocol.
        fold: fold of the protocol.
        labels: label scheme.
        seed: seed of the training.
        settings: the other settings of its training.
        teachers: the study's own runs among its teachers, by the name of their system.
        config: fingerprint of everything that its figures depend on, apart from fold and seed.
    """

    system: str
    verb: Verb
    augmented: bool | None
    images: str
    more_images: tuple[str, ...]
    protocol: str
    fold: int
    labels: str
    seed: int
    settings: dict[str, Any]
    teachers: dict[str, "Run"]
    config: str

    @property
    def name(self) -> str:
        """Name of its folder."""
        augmented = "-augmented" if self.augmented else ""
        labels = "" if self.labels == "emotion" else f"-{self.labels}"
        place = f"{self.protocol}{labels}-fold{self.fold}-seed{self.seed}"
        return f"{self.system}{augmented}-{place}-{self.config[:8]}"

    @property
    def wave(self) -> int:
        """How many other runs have to end one after the other before it starts: those of teachers, and of theirs."""
        return max((1 + teacher.wave for teacher in self.teachers.values()), default=0)

    @property
    def key(self) -> tuple[str, int, int]:
        """Key of its row: configuration, fold and seed."""
        return self.config, self.fold, self.seed


def grid(settings: StudySettings) -> Iterator[Run]:
    """Yield the runs: all systems on a fold and seed before the next.

    Raises:
        EvaluationError: a system has a teacher that the study does not train exactly once before it, in the same place.
    """
    places = [(protocol, fold) for protocol, folds in settings.protocols.items() for fold in folds]
    systems = settings.chosen_systems()
    own = {seed for system in systems for seed in system.seeds}
    seeds = [*settings.seeds, *sorted(own.difference(settings.seeds))]
    for seed, (protocol, fold), labels in product(seeds, places, settings.labels):
        before: dict[str, list[Run]] = {}
        for system in systems:
            if protocol not in system.protocols or seed not in system.seeds:
                continue
            for images in (one for one in system.images if protocol in settings.protocols_of(one)):
                for augmented in [None] if system.augmented is None else settings.augmentation:
                    options = merged(system.options, system.augmented or {}) if augmented else dict(system.options)
                    if system.verb == "finetune":
                        options.setdefault("weights", settings.weights)
                    teachers = _teachers(settings, system.name, options, before)
                    run = Run(
                        system=system.name,
                        verb=system.verb,
                        augmented=augmented,
                        images=images,
                        more_images=system.more_images,
                        protocol=protocol,
                        fold=fold,
                        labels=labels,
                        seed=seed,
                        settings=options,
                        teachers=teachers,
                        config=_config(settings, system, options, protocol, labels, images, teachers),
                    )
                    before.setdefault(system.name, []).append(run)
                    yield run


def _teachers(
    settings: StudySettings, system: str, options: dict[str, Any], before: dict[str, list[Run]]
) -> dict[str, Run]:
    """Return the runs of the systems that are among a system's teachers."""
    found = {}
    for name in options.get("teachers") or []:
        if name in settings.systems:
            trained = [run for run in before.get(name, []) if run.verb == "finetune"]
            if len(trained) != 1:
                raise EvaluationError(
                    f"system {system} has the teacher {name}, of which the study fine-tunes {len(trained)} networks "
                    "before it for the same fold, labels and seed; it needs one: list one above it that is not set to "
                    "null"
                )
            found[name] = trained[0]
    return found


def _config(
    settings: StudySettings,
    system: System,
    options: dict[str, Any],
    protocol: str,
    labels: str,
    images: str,
    own: dict[str, Run],
) -> str:
    """Return the fingerprint of a run, with weights, teachers and models by their content."""
    identity = {**copy.deepcopy(options), "verb": system.verb, "protocol": protocol, "labels": labels}
    if system.verb == "finetune":
        identity["weights"] = _checksum(str(options["weights"]))
        if teachers := options.get("teachers"):
            identity["teachers"] = [own[one].config if one in own else _answers(str(one)) for one in teachers]
    for place in (identity, identity.get("features", {})):
        if "model" in place and Path(str(place["model"])).is_dir():
            place["model"] = _checksum(str(place["model"]))
    if system.more_images:
        identity["more_images"] = [settings.rendering(name) for name in system.more_images]
    return fingerprint({**identity, "images": settings.rendering(images)})


@lru_cache
def _checksum(weights: str) -> str:
    return weights_identity(weights)


@lru_cache
def _answers(folder: str) -> str:
    return classifier_identity(folder)
