"""The grid of a study: which systems run on which pictures, protocols, folds, label schemes and seeds."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from spectro.files import fingerprint
from spectro.model.backbones import weights_identity
from spectro.study.settings import NAMES, VERBS, StudySettings, listed, merged


@dataclass(frozen=True, kw_only=True)
class Run:
    """One row of the grid.

    Args:
        system: name of the system.
        verb: the verb that trains it.
        augmented: whether augmentation is on; None for systems that do not say what it means.
        images: name of its rendering.
        protocol: protocol.
        fold: fold of the protocol.
        labels: label scheme.
        seed: seed of the training.
        settings: the other settings of its training.
        config: fingerprint of what its figures depend on, beside fold and seed.
    """

    system: str
    verb: str
    augmented: bool | None
    images: str
    protocol: str
    fold: int
    labels: str
    seed: int
    settings: dict[str, Any]
    config: str

    @property
    def name(self) -> str:
        """Name of its folder."""
        augmented = "-augmented" if self.augmented else ""
        labels = "" if self.labels == "emotion" else f"-{self.labels}"
        place = f"{self.protocol}{labels}-fold{self.fold}-seed{self.seed}"
        return f"{self.system}{augmented}-{place}-{self.config[:8]}"

    @property
    def key(self) -> tuple[str, int, int]:
        """What tells its row from others: configuration, fold and seed."""
        return self.config, self.fold, self.seed


def grid(settings: StudySettings) -> Iterator[Run]:
    """Yield the runs, all systems of a fold and seed before the next."""
    places = [(protocol, fold) for protocol, folds in settings.protocols.items() for fold in folds]
    systems = [
        (name, merged(settings.base.get(own.get("verb", VERBS[0]), {}), own)) for name, own in settings.chosen_systems()
    ]
    own = {seed for _name, system in systems for seed in system.get("seeds", [])}
    seeds = [*settings.seeds, *sorted(own.difference(settings.seeds))]
    for seed, (protocol, fold), labels in product(seeds, places, settings.labels):
        for name, system in systems:
            if protocol not in listed(system.get("protocols", protocol)):
                continue
            if seed not in system.get("seeds", settings.seeds):
                continue
            for images in listed(system.get("images", list(settings.images))):
                for augmented in settings.augmentation if "augmented" in system else [None]:
                    yield _run(settings, name, system, augmented, images, protocol, fold, labels, seed)


def _run(
    settings: StudySettings,
    name: str,
    system: dict[str, Any],
    augmented: bool | None,
    images: str,
    protocol: str,
    fold: int,
    labels: str,
    seed: int,
) -> Run:
    verb = str(system.get("verb", VERBS[0]))
    if augmented:
        system = merged(system, system["augmented"])
    chosen = {key: value for key, value in system.items() if key not in (*NAMES, "augmented")}
    identity: dict[str, Any] = {
        **copy.deepcopy(chosen),
        "verb": verb,
        "protocol": protocol,
        "labels": labels,
    }
    if verb == "finetune":
        chosen.setdefault("weights", settings.weights)
        identity["weights"] = _checksum(str(chosen["weights"]))
    for place in (identity, identity.get("features", {})):
        if "model" in place and Path(str(place["model"])).is_dir():
            place["model"] = _checksum(str(place["model"]))
    return Run(
        system=name,
        verb=verb,
        augmented=augmented,
        images=images,
        protocol=protocol,
        fold=fold,
        labels=labels,
        seed=seed,
        settings=chosen,
        config=fingerprint({**identity, "images": settings.rendering(images)}),
    )


@lru_cache
def _checksum(weights: str) -> str:
    return weights_identity(weights)
