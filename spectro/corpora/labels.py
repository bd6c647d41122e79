"""Label schemes: map a clip's emotion and gender to a label, or to "left out".

The labels of a scheme follow from the emotions that the corpora declare, not from the clips present, so that a missing
class does not shift the others.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from spectro.corpora.registry import find
from spectro.corpora.splits import speaker_names
from spectro.corpora.table import EMOTIONS, VOTES
from spectro.errors import CorpusError
from spectro.files import printable

GENDERS = ("female", "male")
FIVE = ("angry", "calm", "fearful", "happy", "sad")
VALENCES = {
    "negative": ("sad", "angry", "fearful", "disgust", "bored"),
    "neutral": ("neutral", "calm"),
    "positive": ("happy", "surprised"),
}
SHOWN = 30  # maximum number of labels in a line
VALENCE_OF = {emotion: valence for valence, emotions in VALENCES.items() for emotion in emotions}


@dataclass(frozen=True, kw_only=True)
class LabelScheme:
    """A mapping from emotion and gender to a label.

    Args:
        name: name on the command line.
        needs_gender: whether clips must have the speaker's gender.
        label: maps emotion and gender to the label, or to None for a clip that is left out.
        order: the labels in order; empty for the order of the emotions that they come from.
    """

    name: str
    label: Callable[[str, str], str | None]
    needs_gender: bool = False
    order: tuple[str, ...] = ()


def _five(emotion: str) -> str | None:
    return emotion if emotion in FIVE else None


def _five_gender(emotion: str, gender: str) -> str | None:
    return f"{gender}_{emotion}" if emotion in FIVE else None


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        LabelScheme(name="emotion", label=lambda emotion, _gender: emotion),
        LabelScheme(name="emotion5", label=lambda emotion, _gender: _five(emotion)),
        LabelScheme(name="valence", label=lambda emotion, _gender: VALENCE_OF.get(emotion), order=tuple(VALENCES)),
        LabelScheme(name="gender", label=lambda _emotion, gender: gender, needs_gender=True),
        LabelScheme(name="emotion-gender", label=lambda emotion, gender: f"{gender}_{emotion}", needs_gender=True),
        LabelScheme(name="emotion5-gender", label=_five_gender, needs_gender=True),
    )
}
"""The label schemes, by name."""


def label_clips(clips: pd.DataFrame, scheme_name: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Add a column `label` to clips, and leave out clips for which the scheme has no label.

    Listeners' votes become votes for labels: the text columns `votes_<emotion>` are replaced by numeric columns
    `votes_<label>`. Votes for emotions without a label are left out.

    Args:
        clips: a clip table or image index.
        scheme_name: a name in `SCHEMES`.

    Returns:
        the table with the column `label`, and all labels of the scheme for these corpora, in fixed order.

    Raises:
        CorpusError: the scheme is unknown; a required gender is missing; fewer than two labels remain; or votes are
            not whole numbers.
    """
    if scheme_name not in SCHEMES:
        raise CorpusError(f"unknown label scheme {scheme_name!r}; choose from {', '.join(SCHEMES)}")
    scheme = SCHEMES[scheme_name]
    if scheme.needs_gender and not clips["gender"].isin(GENDERS).all():
        raise CorpusError(f"label scheme {scheme_name!r} needs every speaker's gender, which some clips lack")
    labels = _ordered(scheme, _emotions(clips))
    if len(labels) < 2:
        raise CorpusError(f"label scheme {scheme_name!r} has {len(labels)} label for these clips; it needs two or more")
    genders = clips["gender"].fillna("")
    given = [scheme.label(emotion, gender) for emotion, gender in zip(clips["emotion"], genders, strict=True)]
    labelled = _with_votes(clips, scheme, labels).assign(label=pd.array(given, dtype="string"))
    return labelled[labelled["label"].notna()].reset_index(drop=True), labels


def votes_for(labelled: pd.DataFrame, labels: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """Return how many listeners chose each label, float64 of shape (clips, labels); zeros for clips without votes."""
    columns = labelled.reindex(columns=[f"{VOTES}{label}" for label in labels])
    return columns.fillna(0).to_numpy(np.float64)


def _with_votes(clips: pd.DataFrame, scheme: LabelScheme, labels: tuple[str, ...]) -> pd.DataFrame:
    """Return clips with votes for labels in place of votes for emotions; votes without a label are left out."""
    known = {*EMOTIONS, *clips["emotion"].dropna()}
    columns = [name for name in map(str, clips) if name.startswith(VOTES) and name.removeprefix(VOTES) in known]
    if not columns:
        return clips
    if scheme.needs_gender and len(labels) <= len(GENDERS):  # labels of gender alone
        return clips.drop(columns=columns)
    genders = clips["gender"].fillna("")
    found: dict[str, pd.Series] = {}
    for column in columns:
        numbers = pd.to_numeric(clips[column], errors="coerce").astype("float64")
        wrong = clips[column].notna() & ~(np.isfinite(numbers) & (numbers >= 0) & (numbers % 1 == 0))
        if wrong.any():
            clip, value = clips.loc[wrong, ["clip_id", column]].iloc[0]
            raise CorpusError(
                f"{printable(clip)}: {column} is {printable(str(value))!r}; write the number of listeners who chose it"
            )
        chosen = np.array([scheme.label(column.removeprefix(VOTES), gender) for gender in genders])
        for label in labels:
            votes = numbers.where(chosen == label)
            name = f"{VOTES}{label}"
            found[name] = votes if name not in found else found[name].add(votes, fill_value=0)
    return clips.drop(columns=columns).assign(**{name: own for name, own in found.items() if own.notna().any()})


def tally(clips: pd.DataFrame, column: str = "label") -> str:
    """Return one line with the number of clips of each label, and the number of speakers.

    Args:
        clips: a clip table or image index; each clip counts once.
        column: the column of labels.
    """
    unique = clips.drop_duplicates("clip_id")
    counts = unique[column].value_counts().sort_index()
    shown = [f"{printable(str(label))} {count}" for label, count in counts.items()]
    rest = f", and {len(shown) - SHOWN} more labels" if len(shown) > SHOWN else ""
    told = unique["speaker"].dropna()
    speakers = f"{speaker_names(unique.loc[told.index]).nunique()}" if len(told) else "unknown"
    if 0 < len(told) < len(unique):
        speakers += f", and {len(unique) - len(told)} clips without a speaker"
    return f"labels: {', '.join(shown[:SHOWN])}{rest}; speakers: {speakers}"


def left_out(clips: pd.DataFrame, labelled: pd.DataFrame) -> str:
    """Return the end of a line: how many clips have no label in a scheme, by emotion; empty if all have one.

    Args:
        clips: a clip table or image index; each clip counts once.
        labelled: those of them that have a label.
    """
    counts = clips[~clips["clip_id"].isin(labelled["clip_id"])].drop_duplicates("clip_id")["emotion"].value_counts()
    shown = [f"{printable(str(emotion))} {count}" for emotion, count in counts.sort_index().items()]
    return f"; left out: {', '.join(shown[:SHOWN])}{', ...' if len(shown) > SHOWN else ''}" if shown else ""


def _emotions(clips: pd.DataFrame) -> list[str]:
    """Return the emotions that the clips' corpora declare: those of `EMOTIONS` in order, then others by name."""
    declared: set[str] = set()
    for name in clips["corpus"].unique():
        of_corpus = clips["emotion"][clips["corpus"] == name]
        declared |= set(find(str(name)).emotions or of_corpus.unique())
    return [emotion for emotion in EMOTIONS if emotion in declared] + sorted(declared - set(EMOTIONS))


def _ordered(scheme: LabelScheme, emotions: Iterable[str]) -> tuple[str, ...]:
    genders = GENDERS if scheme.needs_gender else ("",)
    found = [scheme.label(emotion, gender) for gender in genders for emotion in emotions]
    ordered = tuple(dict.fromkeys(label for label in found if label is not None))
    return tuple(label for label in scheme.order if label in ordered) if scheme.order else ordered
