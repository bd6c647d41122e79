"""URDU: emotional utterances from Urdu talk shows (Latif et al., 2018).

Folders Angry, Happy, Neutral, Sad; names are `SM1_F01_A12.wav`: gender and number of the speaker, number of the
speaker's file, emotion letter and number. Source: arXiv:1812.10411.
"""

import re
from pathlib import PurePath

from spectro.corpora.table import Corpus, Fields
from spectro.errors import CorpusError

NAME = re.compile(r"S([MF])(\d+)_F(\d+)_([AHNS])(\d+)", re.IGNORECASE)
CODES = {"N": "neutral", "H": "happy", "S": "sad", "A": "angry"}
GENDERS = {"M": "male", "F": "female"}


def parse(path: PurePath) -> Fields:
    """Read a clip's fields from its name."""
    match = NAME.fullmatch(path.stem)
    if not match:
        raise CorpusError("is not named like SM1_F01_A12.wav")
    gender, speaker, _file, emotion, _number = match.groups()
    return {
        "emotion": CODES[emotion.upper()],
        "speaker": f"{gender.upper()}{int(speaker)}",
        "gender": GENDERS[gender.upper()],
    }


URDU = Corpus(
    name="urdu",
    title="URDU",
    emotions=tuple(CODES.values()),
    language="ur",
    licence="research use only",
    homepage="https://github.com/siddiquelatif/URDU-Dataset",
    open=lambda _root: parse,
)
