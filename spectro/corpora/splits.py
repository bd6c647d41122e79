"""Protocols: named ways of splitting clips into training, validation and test.

Splits are by speaker, never by clip, except under `random-leaky` and `random-leaky-copies`, which show what such a
split is worth. The epoch is chosen on validation speakers; test speakers are evaluated once.
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
Fold: TypeAlias = int | str
"""A fold's number, from 0, or its name, which under `cross-corpus` is the name of the test corpus."""
EVERYONE = "everyone"
UNUSED, SPARE = "none", "spare"

K = 5
MIN_SPEAKERS = 3  # one each for test, validation and training
VALID_SHARE = 0.15
CROSS_CORPUS = "cross-corpus"
LEAKY, LEAKY_COPIES = "random-leaky", "random-leaky-copies"
LEAK = "speakers, and often sentences, are shared between training and test: the figures say nothing about new speakers"
LEAKS = {LEAKY: LEAK, LEAKY_COPIES: f"augmented copies, if used, include those of test clips, and {LEAK}"}
"""What leaks from training to test, by protocol."""
WITHOUT_SPEAKERS = (
    f"or use {LEAKY}, which tests on training speakers and says so, or `finetune --train_on all`, which tests nothing"
)
"""The remaining options if speakers cannot be kept apart."""

LUNA_JIMENEZ_TEST = ((2, 5, 14, 15, 16), (3, 6, 7, 13, 18), (10, 11, 12, 19, 20), (8, 17, 21, 23, 24), (1, 4, 9, 22))
LUNA_JIMENEZ_VALID = ((3, 6), (10, 11), (8, 17), (1, 14), (2, 5))
"""Source: Luna-Jimenez et al., Sensors 21 (2021) 7665, for the test actors; validation actors are from training."""
EMOBOX_TEST = ((1, 11, 20, 21), (4, 10, 12, 14), (8, 9, 19, 23), (3, 5, 7, 24), (2, 15, 16, 18), (6, 13, 17, 22))
"""Source: Ma et al., EmoBox, Interspeech 2024."""


@dataclass(frozen=True)
class Split:
    """One fold of a protocol.

    Args:
        protocol: the protocol's name.
        fold: number of the fold, from 0, or its name.
        folds: number of folds.
        part: part of each clip, by `clip_id`; clips that would reveal a test speaker to training have none.
        speakers: speakers of each part, sorted.
        leak: what leaks from training to test; empty if nothing does.
        spare: ids of clips that are trained on only once no speakers validate: the songs of those who do.
    """

    protocol: str
    fold: Fold
    folds: int
    part: dict[str, Part]
    speakers: dict[Part, tuple[str, ...]]
    leak: str = ""
    spare: tuple[str, ...] = ()

    def rows(self, index: pd.DataFrame, part: Part, *, copies: bool) -> "pd.Series[bool]":
        """Return which rows of an image index belong to a part: original clips, and their copies if requested.

        Under `random-leaky-copies`, copies of all clips belong to the training part.
        """
        own = index["clip_id"].map(self.part) == part
        if not copies:
            return own & (index["copy"] == 0)
        return own | (index["copy"] > 0) if part == "train" and self.protocol == LEAKY_COPIES else own

    def without_validation(self) -> Self:
        """Return the split with the validation speakers moved to training."""
        merged = natural({*self.speakers["train"], *self.speakers["valid"]})
        parts: dict[str, Part] = {clip: "train" if part == "valid" else part for clip, part in self.part.items()}
        for clip in self.spare:
            parts[clip] = "train"
        return replace(
            self,
            part=parts,
            spare=(),
            speakers={"train": tuple(merged), "valid": (), "test": self.speakers["test"]},
        )


def data_fingerprint(labelled: pd.DataFrame, split: Split) -> str:
    """Return 16 hexadecimal digits that identify the clips, copies, labels and parts of a run.

    Args:
        labelled: an image index with a column `label`.
        split: its split.
    """
    columns = ("clip_id", "copy", "parameters", "label", "content_mark")
    known = [labelled[name].astype(str).tolist() for name in columns if name in labelled]
    return fingerprint([*known, sorted(split.part.items())])


def pictures_fingerprint(index: pd.DataFrame) -> str:
    """Return 16 hexadecimal digits that identify the pictures of an image index."""
    ids = index["clip_id"].tolist()
    if "content_mark" not in index:  # of an earlier version, whose runs keep their identity
        return fingerprint(ids)
    return fingerprint([ids, index["content_mark"].astype(str).tolist()])


Folds: TypeAlias = list[tuple[set[str], set[str]]]  # validation and test speakers of each fold
Protocol: TypeAlias = Callable[[pd.DataFrame], Folds]


def split(clips: pd.DataFrame, protocol: str, fold: Fold, valid: Sequence[str] = ()) -> Split:
    """Split clips according to one fold of a protocol.

    Args:
        clips: a clip table with a column `label`; several rows of a clip (copies) stay together.
        protocol: a name in `PROTOCOLS` or `LEAKS`, or `cross-corpus`.
        fold: number of the fold, from 0; under `cross-corpus` the name of the test corpus.
        valid: validation speakers, in place of the protocol's.

    Raises:
        SplitError: the protocol or fold is unknown; speakers are missing; a part or a training class would be empty;
            or a validation speaker is a test speaker or not among the clips.
    """
    unique = clips.drop_duplicates("clip_id")
    if protocol in LEAKS:
        if valid:
            raise SplitError(f"{protocol} splits clips, not speakers: validation speakers cannot be chosen")
        parts, folds = _leaky(unique, _number(protocol, fold))
    elif protocol in PROTOCOLS or protocol == CROSS_CORPUS:
        parts, folds = _by_speaker(unique, protocol, fold, set(valid))
    else:
        raise SplitError(f"unknown protocol {protocol!r}; choose from {', '.join([*PROTOCOLS, CROSS_CORPUS, *LEAKS])}")
    speakers = speaker_names(unique).fillna("").to_numpy(dtype=str)
    missing = sorted(set(unique["label"][np.isin(parts, PARTS)]) - set(unique["label"][parts == "train"]))
    if missing:
        raise SplitError(
            f"{protocol} fold {fold}: no training clip is labelled {', '.join(missing)}, since few speakers have such "
            "clips; add more, leave the label out, or choose another fold"
        )
    return Split(
        protocol=protocol,
        fold=fold,
        folds=folds,
        part={clip: part for clip, part in zip(unique["clip_id"], parts.tolist(), strict=True) if part in PARTS},
        speakers={part: tuple(natural(set(speakers[parts == part]))) for part in PARTS},
        leak=LEAKS.get(protocol, ""),
        spare=tuple(unique["clip_id"][parts == SPARE]),
    )


def everyone(clips: pd.DataFrame) -> Split:
    """Return the split that trains on all speakers, without a protocol: for a network to be used, not measured."""
    unique = clips.drop_duplicates("clip_id")
    return Split(
        protocol=EVERYONE,
        fold=0,
        folds=1,
        part=dict.fromkeys(unique["clip_id"], "train"),
        speakers={"train": tuple(natural(set(speaker_names(unique).dropna()))), "valid": (), "test": ()},
    )


def _by_speaker(clips: pd.DataFrame, protocol: str, fold: Fold, chosen: set[str]) -> tuple[np.ndarray[Any, Any], int]:
    if clips["speaker"].isna().any():
        raise SplitError(
            f"{protocol} needs every clip's speaker, and {int(clips['speaker'].isna().sum())} clips have none: "
            f"list them in a CSV with the columns path, label, speaker, {WITHOUT_SPEAKERS}"
        )
    if protocol == CROSS_CORPUS:
        folds, (valid, test) = clips["corpus"].nunique(), _cross_corpus(clips, fold)
    else:
        found = PROTOCOLS[protocol](clips)
        number, folds = _number(protocol, fold), len(found)
        _check_fold(protocol, number, folds)
        valid, test = found[number]
    named = speaker_names(clips)
    chosen = {_known_name(name, set(named)) for name in chosen}
    if tested := natural(chosen & test):
        raise SplitError(f"{protocol} fold {fold} tests {', '.join(tested)}: choose other validation speakers")
    if unknown := natural(chosen - set(named)):
        raise SplitError(
            f"{protocol} fold {fold}: no clip is of validation speaker {', '.join(unknown)}; write names as the clips "
            f"have them, such as {natural(set(named))[0]}"
        )
    valid = chosen or valid
    parts = np.where(named.isin(test), "test", np.where(named.isin(valid), "valid", "train")).astype(object)
    corpora = clips["corpus"].to_numpy(dtype=str)
    if protocol == CROSS_CORPUS:
        known = clips["label"].isin(set(clips["label"][parts == "train"])).to_numpy()
        parts[(parts == "test") & ((corpora != fold) | ~known)] = UNUSED
    elif protocol in OF_RAVDESS and "ravdess" in corpora:
        songs = corpora != "ravdess"  # those of test speakers are never trained on
        parts[songs & (parts == "test")], parts[songs & (parts == "valid")] = UNUSED, SPARE
    for part in PARTS:
        if not (parts == part).any():
            raise SplitError(
                f"{protocol} fold {fold}: no {part} speaker is among these clips' speakers; {_other_way(named)}"
            )
    return parts, folds


def _cross_corpus(clips: pd.DataFrame, fold: Fold) -> tuple[set[str], set[str]]:
    """Return validation speakers, some of each other corpus, and test speakers, all of the test corpus."""
    corpora = natural(set(clips["corpus"]))
    if fold not in corpora or len(set(map(voices, corpora))) < 2:
        raise SplitError(
            f"{CROSS_CORPUS} tests on one corpus and trains on others: name one of {', '.join(corpora)} with --fold, "
            "and renderings of two or more with --index"
        )
    groups, named = clips["corpus"].map(voices), speaker_names(clips)
    test = set(named[groups == voices(str(fold))])
    valid: set[str] = set()
    for _group, own in clips.groupby(groups.to_numpy(dtype=str)):
        speakers = speaker_names(clips).loc[own.index]
        if not set(speakers) & test and (count := round(VALID_SHARE * speakers.nunique())):
            valid |= set(_shuffled(own.assign(name=speakers), 0)[:count])
    return valid, test


def _number(protocol: str, fold: Fold) -> int:
    if not isinstance(fold, int):
        raise SplitError(f"{protocol} has numbered folds, from 0; fold {fold!r} was requested")
    return fold


def _known_name(name: str, names: set[str]) -> str:
    """Return the name if it is among names, else the only name that is the same number: 01 is 1."""
    if name in names:
        return name
    same = [one for one in names if one.isdecimal() and name.isdecimal() and int(one) == int(name)]
    return same[0] if len(same) == 1 else name


def _other_way(named: "pd.Series[str]") -> str:
    """Return the options for this number of speakers, as part of a message."""
    count = named.nunique()
    there = f"there {'is' if count == 1 else 'are'} {count}"
    if count < MIN_SPEAKERS:
        return f"{there}, too few for an honest split: record or list more, {WITHOUT_SPEAKERS}"
    return f"{there}: use {'loso' if count <= K else 'group-kfold or loso'}"


def _few(labels: npt.NDArray[np.str_], least: int) -> str:
    """Return the labels with fewer than `least` clips, with their counts, as text; empty if there are none."""
    names, counts = np.unique(labels, return_counts=True)
    return ", ".join(f"{name} has {count}" for name, count in zip(names, counts, strict=True) if count < least)


def speaker_names(clips: pd.DataFrame) -> pd.Series:
    """Return speakers' names, prefixed with their corpus if the clips' corpora do not share their speakers."""
    groups = clips["corpus"].map(voices)
    return clips["speaker"] if groups.nunique() == 1 else groups + "/" + clips["speaker"]


def voices(corpus: str) -> str:
    """Return the name of a corpus's group of speakers: RAVDESS speech and song share their actors."""
    return find(corpus).voices or corpus


def full_names(names: Iterable[str], corpora: Iterable[str]) -> dict[str, str]:
    """Return speakers' names with their corpus, unique across corpora, by the names that a split gives them."""
    groups = {voices(corpus) for corpus in corpora}
    return {name: f"{next(iter(groups))}/{name}" if len(groups) == 1 else name for name in names}


def _leaky(clips: pd.DataFrame, fold: int) -> tuple[np.ndarray[Any, Any], int]:
    _check_fold(LEAKY, fold, K)
    from sklearn.model_selection import StratifiedKFold  # takes half a second to import, and rendering seldom splits

    labels = clips["label"].to_numpy(dtype=str)
    if few := _few(labels, 2 * K):
        raise SplitError(f"{LEAKY} needs {2 * K} clips of every label, but {few}; add more, or leave the label out")
    parts = np.full(len(clips), "train", dtype="<U5")
    rest, test = list(StratifiedKFold(K, shuffle=True, random_state=0).split(labels, labels))[fold]
    inner = StratifiedKFold(round(1 / VALID_SHARE), shuffle=True, random_state=0).split(rest, labels[rest])
    parts[rest[next(iter(inner))[1]]] = "valid"
    parts[test] = "test"
    return parts, K


def _check_fold(protocol: str, fold: int, folds: int) -> None:
    if not 0 <= fold < folds:
        raise SplitError(f"{protocol} has folds 0 to {folds - 1}; fold {fold} was requested")


def _luna_jimenez(clips: pd.DataFrame) -> Folds:
    _own, prefix = _ravdess_among(clips, "luna-jimenez")
    folds = [(_texts(valid), _texts(test)) for valid, test in zip(LUNA_JIMENEZ_VALID, LUNA_JIMENEZ_TEST, strict=True)]
    return _prefixed(folds, prefix)


def _emobox(clips: pd.DataFrame) -> Folds:
    own, prefix = _ravdess_among(clips, "emobox")
    return _prefixed(
        [(_sample_speakers(own, _texts(test), fold), _texts(test)) for fold, test in enumerate(EMOBOX_TEST)], prefix
    )


def _leave_one_out(clips: pd.DataFrame) -> Folds:
    named = speaker_names(clips)
    speakers = natural(set(named))
    if len(speakers) < MIN_SPEAKERS:
        raise SplitError(f"loso needs {MIN_SPEAKERS} speakers (test, validation, training); {_other_way(named)}")
    return [(_sample_speakers(clips, {speaker}, fold), {speaker}) for fold, speaker in enumerate(speakers)]


def _group_kfold(clips: pd.DataFrame) -> Folds:
    named = speaker_names(clips)
    if named.nunique() < K + 1:
        raise SplitError(f"group-kfold needs {K + 1} speakers; {_other_way(named)}")
    speakers, labels = named.to_numpy(dtype=str), clips["label"].to_numpy(dtype=str)
    if few := _few(labels, K):
        raise SplitError(
            f"group-kfold makes {K} folds and needs {K} clips of every label, but {few}; "
            "add more, leave the label out, or use loso"
        )
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(K, shuffle=True, random_state=0).split(labels, labels, speakers)
    tests = [set(speakers[test]) for _rest, test in folds]
    return [(_sample_speakers(clips, test, fold), test) for fold, test in enumerate(tests)]


def _sample_speakers(clips: pd.DataFrame, test: set[str], fold: int) -> set[str]:
    """Sample validation speakers, about a seventh of the non-test speakers, balanced by gender if known.

    The sample depends on the fold alone, so that a protocol is the same for everyone.
    """
    named = clips.assign(name=speaker_names(clips)).drop_duplicates("name")
    named = named[~named["name"].isin(test)]
    return set(_shuffled(named, fold)[: max(1, round(VALID_SHARE * len(named)))])


def _shuffled(named: pd.DataFrame, fold: int) -> list[str]:
    """Return the names in a column `name`, each once, shuffled per fold, alternating women and men if known."""
    groups = [natural(set(names)) for _gender, names in named.groupby(named["gender"].fillna(""))["name"]]
    generator = np.random.default_rng(fold)
    shuffled = [[str(name) for name in generator.permutation(group)] for group in groups]
    shuffled.sort(key=len, reverse=True)
    return [name for turn in zip_longest(*shuffled) for name in turn if name is not None]


def _ravdess_among(clips: pd.DataFrame, protocol: str) -> tuple[pd.DataFrame, str]:
    """Return the clips of RAVDESS, and the prefix of its actors' names among the speakers of all clips.

    All other clips are for training: other corpora do not share speakers with RAVDESS.
    """
    groups = clips["corpus"].map(voices)
    own = clips[groups == "ravdess"]
    if not len(own):
        raise SplitError(
            f"{protocol} is a protocol of RAVDESS; these clips are from {', '.join(sorted(set(clips['corpus'])))}: "
            f"{_other_way(speaker_names(clips))}"
        )
    return own, "ravdess/" if groups.nunique() > 1 else ""


def _prefixed(folds: Folds, prefix: str) -> Folds:
    return [({f"{prefix}{one}" for one in valid}, {f"{prefix}{one}" for one in test}) for valid, test in folds]


def _texts(actors: tuple[int, ...]) -> set[str]:
    return {str(actor) for actor in actors}


def natural(names: Iterable[str]) -> list[str]:
    """Return names in natural order: numbers sort by value, also after the name of a corpus."""

    def place(name: str) -> tuple[str, bool, int, str]:
        corpus, _, own = name.rpartition("/")
        return corpus, not own.isdecimal(), int(own) if own.isdecimal() else 0, own

    return sorted((str(name) for name in names), key=place)


OF_RAVDESS = ("luna-jimenez", "emobox")
PROTOCOLS: dict[str, Protocol] = {
    "luna-jimenez": _luna_jimenez,
    "emobox": _emobox,
    "loso": _leave_one_out,
    "group-kfold": _group_kfold,
}
"""The speaker-independent protocols with numbered folds, by name."""
