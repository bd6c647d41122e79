"""CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset (Cao et al., 2014).

Names are `1001_DFA_ANG_XX.wav`: actor, sentence, emotion, level. One clip writes its level as a single X. Which actors
are women is told by the corpus's own VideoDemographics.csv. Source: doi:10.1109/TAFFC.2014.2336244.
"""

import re
from pathlib import PurePath

from spectro.corpora.table import Corpus, Fields
from spectro.errors import CorpusError

NAME = re.compile(r"(\d{4})_([A-Z]{3})_([A-Z]{3})_(LO|MD|HI|XX?)")
CODES = {"NEU": "neutral", "HAP": "happy", "SAD": "sad", "ANG": "angry", "FEA": "fearful", "DIS": "disgust"}
LEVELS = {"LO": "low", "MD": "medium", "HI": "high"}
FIRST_ACTOR, LAST_ACTOR = 1001, 1091
WOMEN = frozenset(
    1000 + number
    for number in (
        *(2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 18, 20, 21, 24, 25, 28, 29, 30, 37, 43, 46, 47, 49, 52, 53, 54, 55, 56, 58),
        *(60, 61, 63, 72, 73, 74, 75, 76, 78, 79, 82, 84, 89, 91),
    )
)


def parse(path: PurePath) -> Fields:
    """Read a clip's fields from its name."""
    match = NAME.fullmatch(path.stem)
    if not match or match[3] not in CODES:
        raise CorpusError("is not named like 1001_DFA_ANG_XX.wav")
    actor = int(match[1])
    if not FIRST_ACTOR <= actor <= LAST_ACTOR:
        raise CorpusError(f"names actor {actor}; there are {FIRST_ACTOR} to {LAST_ACTOR}")
    return {
        "emotion": CODES[match[3]],
        "speaker": match[1],
        "gender": "female" if actor in WOMEN else "male",
        "intensity": LEVELS.get(match[4]),
        "statement": match[2],
    }


CREMA_D = Corpus(
    name="crema-d",
    title="CREMA-D",
    emotions=tuple(CODES.values()),
    language="en",
    licence="ODbL 1.0",
    homepage="https://github.com/CheyneyComputerScience/CREMA-D",
    open=lambda _root: parse,
)
