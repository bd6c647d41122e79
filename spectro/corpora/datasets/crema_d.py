"""CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset (Cao et al., 2014).

Names are `1001_DFA_ANG_XX.wav`: actor, sentence, emotion, level. One clip has a single X as its level. The actors'
genders are those in the corpus's VideoDemographics.csv. Source: doi:10.1109/TAFFC.2014.2336244.

Two tables of the corpus are read if present: VideoDemographics.csv, with the actors' age, race and ethnicity; and
processedResults/tabulatedVotes.csv, or voice_votes.csv, with listeners' votes on the voice alone.
"""

import re
from pathlib import Path, PurePath

import pandas as pd

from spectro.corpora.table import VOTES, Corpus, Fields, Parser
from spectro.errors import CorpusError
from spectro.files import printable

NAME = re.compile(r"(\d{4})_([A-Z]{3})_([A-Z]{3})_(LO|MD|HI|XX?)")
CODES = {"NEU": "neutral", "HAP": "happy", "SAD": "sad", "ANG": "angry", "FEA": "fearful", "DIS": "disgust"}
VOICE_ALONE = 1
"""First digit of a row's number in tabulatedVotes.csv if listeners heard the voice without the video."""
LEVELS = {"LO": "low", "MD": "medium", "HI": "high"}
FIRST_ACTOR, LAST_ACTOR = 1001, 1091
WOMEN = frozenset(
    1000 + number
    for number in (
        *(2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 18, 20, 21, 24, 25, 28, 29, 30, 37, 43, 46, 47, 49, 52, 53, 54, 55, 56, 58),
        *(60, 61, 63, 72, 73, 74, 75, 76, 78, 79, 82, 84, 89, 91),
    )
)


def open_corpus(root: Path) -> Parser:
    """Return a parser of names that adds fields from the corpus's tables, which are in `root` or beside it.

    Raises:
        CorpusError: a table cannot be read.
    """
    actors, votes = _read_actors(root), _read_votes(root)

    def parse_all(path: PurePath) -> Fields:
        fields = parse(path)
        return fields | actors.get(str(fields["speaker"]), {}) | votes.get(path.stem, {})

    return parse_all


def parse(path: PurePath) -> Fields:
    """Read a clip's fields from its name."""
    match = NAME.fullmatch(path.stem)
    if not match or match[3] not in CODES:
        raise CorpusError("is not named like 1001_DFA_ANG_XX.wav")
    actor = int(match[1])
    if not FIRST_ACTOR <= actor <= LAST_ACTOR:
        raise CorpusError(f"names actor {actor}; actors are {FIRST_ACTOR} to {LAST_ACTOR}")
    return {
        "emotion": CODES[match[3]],
        "speaker": match[1],
        "gender": "female" if actor in WOMEN else "male",
        "intensity": LEVELS.get(match[4]),
        "statement": match[2],
    }


def _read_actors(root: Path) -> dict[str, Fields]:
    """Return age (in years), race and ethnicity of each actor."""
    _path, table = _table(root, "VideoDemographics.csv", ("ActorID", "Age", "Race", "Ethnicity"))
    if table is None:
        return {}
    return {
        actor: {"age": age, "race": race, "ethnicity": ethnicity}
        for actor, age, race, ethnicity in table[["ActorID", "Age", "Race", "Ethnicity"]].itertuples(index=False)
    }


def _read_votes(root: Path) -> dict[str, Fields]:
    """Return the number of listeners who chose each emotion for each clip, by the clip's name."""
    names = {code[0]: emotion for code, emotion in CODES.items()}
    path, table = _table(root, "voice_votes.csv", ("file", *CODES.values()))
    if table is None:
        path, table = _table(root, "processedResults/tabulatedVotes.csv", (*names, "fileName"))
        if table is None:
            return {}
        queries = pd.to_numeric(table.iloc[:, 0], errors="coerce") // 100_000
        table = table[queries == VOICE_ALONE].rename(columns=names | {"fileName": "file"})
    emotions = list(CODES.values())
    if not table[emotions].map(str.isdecimal).all(axis=None):
        raise CorpusError(f"{printable(path)}: a vote count is not a whole number; fetch the table again")
    return {
        name: {f"{VOTES}{emotion}": votes for emotion, votes in zip(emotions, own, strict=True)}
        for name, *own in table[["file", *emotions]].itertuples(index=False)
    }


def _table(root: Path, name: str, columns: tuple[str, ...]) -> tuple[Path, pd.DataFrame | None]:
    """Return the path of a table of the corpus and its content as text, or None if it does not exist."""
    path = next((folder / name for folder in (root, root.parent) if (folder / name).is_file()), root / name)
    if not path.is_file():
        return path, None
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        raise CorpusError(
            f"{printable(path)}: is not a readable CSV ({error}); fetch it again, or remove it"
        ) from error
    if missing := [column for column in columns if column not in table]:
        raise CorpusError(f"{printable(path)}: lacks the columns {', '.join(missing)}; fetch it again, or remove it")
    return path, table


CREMA_D = Corpus(
    name="crema-d",
    title="CREMA-D",
    emotions=tuple(CODES.values()),
    language="en",
    licence="ODbL 1.0",
    homepage="https://github.com/CheyneyComputerScience/CREMA-D",
    open=open_corpus,
)
