"""Protocols: named ways of splitting clips into training, validation and test.

Speakers are split, never clips, except under `random-leaky` and `random-leaky-copies`, which are there to show what
that is worth. Validation speakers choose the epoch; test speakers are looked at once.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from spectro.corpora.registry import find
from spectro.errors import SplitError
from spectro.files import fingerprint

Part: TypeAlias = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = ("train", "valid", "test")
TrainOn: TypeAlias = Literal["train", "valid", "all"]
EVERYONE = "everyone"

K = 5
MIN_SPEAKERS = 3  # one to test, one to validate, one to train
VALID_SHARE = 0.15
LEAKY, LEAKY_COPIES = "random-leaky", "random-leaky-copies"
LEAK = "speakers, and often sentences, are shared between training and test: the figures say nothing about new speakers"
LEAKS = {LEAKY: LEAK, LEAKY_COPIES: f"augmented copies of test clips train wherever copies do, and {LEAK}"}
"""What leaks, by protocol."""
WITHOUT_SPEAKERS = (
    f"else there is {LEAKY}, which tests on speakers that it trains on and says so, "
    "and `finetune --train_on all`, which tests nothing"
)
"""What is left where speakers cannot be kept apart."""

LUNA_JIMENEZ_TEST = ((2, 5, 14, 15, 16), (3, 6, 7, 13, 18), (10, 11, 12, 19, 20), (8, 17, 21, 23, 24), (1, 4, 9, 22))
LUNA_JIMENEZ_VALID = ((3, 6), (10, 11), (8, 17), (1, 14), (2, 5))
"""Source: Luna-Jimenez et al., Sensors 21 (2021) 7665, for the test actors; validation actors taken from training."""
EMOBOX_TEST = ((1, 11, 20, 21), (4, 10, 12, 14), (8, 9, 19, 23), (3, 5, 7, 24), (2, 15, 16, 18), (6, 13, 17, 22))
"""Source: Ma et al., EmoBox, Interspeech 2024."""


@dataclass(frozen=True)
class Split:
    """One fold of a protocol.

    Args:
        protocol: the protocol's name.
        fold: number of the fold, from 0.
        folds: how many there are.
        part: part of each clip, by `clip_id`.
        speakers: speakers of each part, sorted.
        leak: what leaks from training to test; empty if nothing does.
    """

    protocol: str
    fold: int
    folds: int
    part: dict[str, Part]
    speakers: dict[Part, tuple[str, ...]]
    leak: str = ""

    def rows(self, index: pd.DataFrame, part: Part, *, copies: bool) -> "pd.Series[bool]":
        """Return which rows of an image index are of a part: untouched clips, and copies if they are asked for.

        Under `random-leaky-copies`, copies of all clips are of the training part.
        """
        own = index["clip_id"].map(self.part) == part
        if not copies:
            return own & (index["copy"] == 0)
        return own | (index["copy"] > 0) if part == "train" and self.protocol == LEAKY_COPIES else own

    def describe(self) -> dict[str, Any]:
        """Return what a checkpoint or a report must say of the split, as JSON values."""
        return {
            "protocol": self.protocol,
            "fold": self.fold,
            "folds": self.folds,
            "speakers": {part: list(names) for part, names in self.speakers.items()},
            "leak": self.leak,
        }

    def without_validation(self) -> Self:
        """Return the split in which the validation speakers train too."""
        merged = natural({*self.speakers["train"], *self.speakers["valid"]})
        return replace(
            self,
            part={clip: "train" if part == "valid" else part for clip, part in self.part.items()},
            speakers={"train": tuple(merged), "valid": (), "test": self.speakers["test"]},
        )


def data_fingerprint(labelled: pd.DataFrame, split: Split) -> str:
    """Return 16 hexadecimal digits that tell the clips, copies, labels and parts of a run from any others.

    Args:
        labelled: an image index with a column `label`.
        split: its split.
    """
    columns = ("clip_id", "copy", "parameters", "label")
    return fingerprint([labelled[name].astype(str).tolist() for name in columns] + [sorted(split.part.items())])


Folds: TypeAlias = list[tuple[set[str], set[str]]]  # validation and test speakers of each fold
Protocol: TypeAlias = Callable[[pd.DataFrame], Folds]


def split(clips: pd.DataFrame, protocol: str, fold: int, valid: Sequence[str] = ()) -> Split:
    """Split clips by one fold of a protocol.

    Args:
        clips: a clip table with a column `label`; several rows a clip (copies) are split together.
        protocol: a name in `PROTOCOLS` or `LEAKS`.
        fold: number of the fold, from 0.
        valid: speakers to validate on, in place of the protocol's.

    Raises:
        SplitError: no such protocol or fold; speakers are not told; a part or a training class would be empty; or
            speakers that the fold tests, or does not have, are to validate.
    """
    unique = clips.drop_duplicates("clip_id")
    if protocol in LEAKS:
        if valid:
            raise SplitError(f"{protocol} splits clips, not speakers: nobody can be chosen to validate")
        parts, folds = _leaky(unique, fold)
    elif protocol in PROTOCOLS:
        parts, folds = _by_speaker(unique, protocol, fold, set(valid))
    else:
        raise SplitError(f"unknown protocol {protocol!r}; there are {', '.join([*PROTOCOLS, *LEAKS])}")
    speakers = speaker_names(unique).fillna("").to_numpy(dtype=str)
    missing = sorted(set(unique["label"]) - set(unique["label"][parts == "train"]))
    if missing:
        raise SplitError(
            f"{protocol} fold {fold}: no training clip is labelled {', '.join(missing)}, since few speakers have such "
            "clips; add more, leave the label out, or choose another fold"
        )
    return Split(
        protocol=protocol,
        fold=fold,
        folds=folds,
        part=dict(zip(unique["clip_id"], parts.tolist(), strict=True)),
        speakers={part: tuple(natural(set(speakers[parts == part]))) for part in PARTS},
        leak=LEAKS.get(protocol, ""),
    )


def everyone(clips: pd.DataFrame) -> Split:
    """Return the split that holds nobody out, by no protocol: for a network that is to be used, and not measured."""
    unique = clips.drop_duplicates("clip_id")
    return Split(
        protocol=EVERYONE,
        fold=0,
        folds=1,
        part=dict.fromkeys(unique["clip_id"], "train"),
        speakers={"train": tuple(natural(set(speaker_names(unique).dropna()))), "valid": (), "test": ()},
    )


def _by_speaker(clips: pd.DataFrame, protocol: str, fold: int, chosen: set[str]) -> tuple[np.ndarray[Any, Any], int]:
    if clips["speaker"].isna().any():
        raise SplitError(
            f"{protocol} needs every clip's speaker, and {int(clips['speaker'].isna().sum())} clips do not tell it: "
            f"list them in a CSV with the columns path, label, speaker; {WITHOUT_SPEAKERS}"
        )
    folds = PROTOCOLS[protocol](clips)
    _check_fold(protocol, fold, len(folds))
    valid, test = folds[fold]
    named = speaker_names(clips)
    chosen = {_known_name(name, set(named)) for name in chosen}
    if impossible := natural((chosen & test) | (chosen - set(named))):
        raise SplitError(f"{protocol} fold {fold}: {', '.join(impossible)} cannot validate: tested, or not among clips")
    valid = chosen or valid
    parts = np.where(named.isin(test), "test", np.where(named.isin(valid), "valid", "train"))
    for part in PARTS:
        if not (parts == part).any():
            raise SplitError(
                f"{protocol} fold {fold}: no {part} speaker is among these clips' speakers; {_other_way(named)}"
            )
    return parts, len(folds)


def _known_name(name: str, names: set[str]) -> str:
    """Return the name itself if it is among names, else the only one that is the same number: 01 is 1."""
    if name in names:
        return name
    same = [one for one in names if one.isdecimal() and name.isdecimal() and int(one) == int(name)]
    return same[0] if len(same) == 1 else name


def _other_way(named: "pd.Series[str]") -> str:
    """Return what can be done with so many speakers."""
    count = named.nunique()
    there = f"there {'is' if count == 1 else 'are'} {count}"
    if count < MIN_SPEAKERS:
        return f"{there}, and no split of so few is honest: record or list more; {WITHOUT_SPEAKERS}"
    return f"{there}: use {'loso' if count <= K else 'group-kfold or loso'}"


def _few(labels: npt.NDArray[np.str_], least: int) -> str:
    """Return the labels that have fewer clips than `least`, and how many each has; empty if there are none."""
    names, counts = np.unique(labels, return_counts=True)
    return ", ".join(f"{name} has {count}" for name, count in zip(names, counts, strict=True) if count < least)


def speaker_names(clips: pd.DataFrame) -> pd.Series:
    """Return the speakers' names, made unique by their corpus where the clips' corpora do not share their speakers."""
    groups = clips["corpus"].map(voices)
    return clips["speaker"] if groups.nunique() == 1 else groups + "/" + clips["speaker"]


def voices(corpus: str) -> str:
    """Return the name of a corpus's group of speakers: RAVDESS speech and song have the same actors."""
    return find(corpus).voices or corpus


def full_names(names: Iterable[str], corpora: Iterable[str]) -> dict[str, str]:
    """Return speakers' names with their corpus, which no other corpus's have, by the names that a split gives them."""
    groups = {voices(corpus) for corpus in corpora}
    return {name: f"{next(iter(groups))}/{name}" if len(groups) == 1 else name for name in names}


def heard(origin: dict[str, Any]) -> set[str]:
    """Return the full names of the speakers that a checkpoint, or those that it began with, trained or validated on.

    Args:
        origin: the content of a `spectro.json`; one that tells no split has heard nobody that is known.
    """
    if not {"data", "split"} <= set(origin):
        return set()
    speakers = origin["split"]["speakers"]
    own = full_names({*speakers["train"], *speakers["valid"]}, origin["data"]["corpora"])
    return {*own.values(), *origin.get("heard_before", [])}


def _leaky(clips: pd.DataFrame, fold: int) -> tuple[np.ndarray[Any, Any], int]:
    _check_fold(LEAKY, fold, K)
    from sklearn.model_selection import StratifiedKFold  # half a second to import, and rendering seldom splits

    labels = clips["label"].to_numpy(dtype=str)
    if few := _few(labels, 2 * K):
        raise SplitError(f"{LEAKY} needs {2 * K} clips of every label, and {few}; add more, or leave the label out")
    parts = np.full(len(clips), "train", dtype="<U5")
    rest, test = list(StratifiedKFold(K, shuffle=True, random_state=0).split(labels, labels))[fold]
    inner = StratifiedKFold(round(1 / VALID_SHARE), shuffle=True, random_state=0).split(rest, labels[rest])
    parts[rest[next(iter(inner))[1]]] = "valid"
    parts[test] = "test"
    return parts, K


def _check_fold(protocol: str, fold: int, folds: int) -> None:
    if not 0 <= fold < folds:
        raise SplitError(f"{protocol} has folds 0 to {folds - 1}; fold {fold} was asked for")


def _luna_jimenez(clips: pd.DataFrame) -> Folds:
    _only_ravdess(clips, "luna-jimenez")
    return [(_texts(valid), _texts(test)) for valid, test in zip(LUNA_JIMENEZ_VALID, LUNA_JIMENEZ_TEST, strict=True)]


def _emobox(clips: pd.DataFrame) -> Folds:
    _only_ravdess(clips, "emobox")
    return [(_draw(clips, _texts(test), fold), _texts(test)) for fold, test in enumerate(EMOBOX_TEST)]


def _leave_one_out(clips: pd.DataFrame) -> Folds:
    named = speaker_names(clips)
    speakers = natural(set(named))
    if len(speakers) < MIN_SPEAKERS:
        raise SplitError(f"loso needs {MIN_SPEAKERS} speakers (test, validation, training); {_other_way(named)}")
    return [(_draw(clips, {speaker}, fold), {speaker}) for fold, speaker in enumerate(speakers)]


def _group_kfold(clips: pd.DataFrame) -> Folds:
    named = speaker_names(clips)
    if named.nunique() < K + 1:
        raise SplitError(f"group-kfold needs {K + 1} speakers; {_other_way(named)}")
    speakers, labels = named.to_numpy(dtype=str), clips["label"].to_numpy(dtype=str)
    if few := _few(labels, K):
        raise SplitError(
            f"group-kfold makes {K} folds, which {K} clips of every label are needed for, and {few}; "
            "add more, leave the label out, or use loso"
        )
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(K, shuffle=True, random_state=0).split(labels, labels, speakers)
    tests = [set(speakers[test]) for _rest, test in folds]
    return [(_draw(clips, test, fold), test) for fold, test in enumerate(tests)]


def _draw(clips: pd.DataFrame, test: set[str], fold: int) -> set[str]:
    """Draw validation speakers, about a seventh of those that are not tested, as many women as men where told.

    The draw depends on the fold alone, so that a protocol is the same for everyone.
    """
    named = clips.assign(name=speaker_names(clips)).drop_duplicates("name")
    named = named[~named["name"].isin(test)]
    groups = [natural(set(names)) for _gender, names in named.groupby(named["gender"].fillna(""))["name"]]
    generator = np.random.default_rng(fold)
    shuffled = [[str(name) for name in generator.permutation(group)] for group in groups]
    shuffled.sort(key=len, reverse=True)
    alternating = [name for turn in zip_longest(*shuffled) for name in turn if name is not None]
    return set(alternating[: max(1, round(VALID_SHARE * len(named)))])


def _only_ravdess(clips: pd.DataFrame, protocol: str) -> None:
    corpora = set(clips["corpus"])
    if not corpora <= {"ravdess", "ravdess-song"}:
        raise SplitError(
            f"{protocol} is a protocol of RAVDESS; these clips are of {', '.join(sorted(corpora))}: "
            f"{_other_way(speaker_names(clips))}"
        )


def _texts(actors: tuple[int, ...]) -> set[str]:
    return {str(actor) for actor in actors}


def natural(names: Iterable[str]) -> list[str]:
    """Return names in order, numbers by value."""
    return sorted(
        (str(name) for name in names),
        key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name),
    )


PROTOCOLS: dict[str, Protocol] = {
    "luna-jimenez": _luna_jimenez,
    "emobox": _emobox,
    "loso": _leave_one_out,
    "group-kfold": _group_kfold,
}
"""The protocols that keep speakers apart, by name."""
