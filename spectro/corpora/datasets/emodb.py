"""EmoDB: Berlin Database of Emotional Speech (Burkhardt et al., 2005).

Names are `03a01Fa.wav`: speaker, sentence, emotion (the German word's first letter), version.
Source: doi:10.21437/Interspeech.2005-446.
"""

import re
from pathlib import PurePath

from spectro.corpora.table import Corpus, Fields
from spectro.errors import CorpusError

NAME = re.compile(r"(\d\d)([ab]\d\d)([WLEAFTN])([a-z]?)")
CODES = {
    "N": "neutral",
    "F": "happy",
    "T": "sad",
    "W": "angry",
    "A": "fearful",
    "E": "disgust",
    "L": "bored",
}
MEN = {"03", "10", "11", "12", "15"}
WOMEN = {"08", "09", "13", "14", "16"}


def parse(path: PurePath) -> Fields:
    """Read a clip's fields from its name."""
    match = NAME.fullmatch(path.stem)
    if not match:
        raise CorpusError("is not named like 03a01Fa.wav")
    speaker, sentence, emotion, _version = match.groups()
    if speaker not in MEN | WOMEN:
        raise CorpusError(f"names speaker {speaker}; speakers are {', '.join(sorted(MEN | WOMEN))}")
    return {
        "emotion": CODES[emotion],
        "speaker": speaker,
        "gender": "male" if speaker in MEN else "female",
        "statement": sentence,
    }


EMODB = Corpus(
    name="emodb",
    title="EmoDB",
    emotions=tuple(CODES.values()),
    language="de",
    licence="CC0 1.0",
    homepage="http://emodb.bilderbar.info/",
    open=lambda _root: parse,
)
