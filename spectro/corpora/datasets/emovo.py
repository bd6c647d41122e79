"""EMOVO: Italian acted emotional speech (Costantini et al., LREC 2014).

Six actors speak 14 sentences each, half of them nonsense. Names are `f1/dis-f1-b1.wav`: emotion (the Italian
word's first letters), speaker, sentence. Source: https://aclanthology.org/L14-1478/.
"""

import re
from pathlib import PurePath

from spectro.corpora.table import Corpus, Fields
from spectro.errors import CorpusError

NAME = re.compile(r"(neu|gio|tri|rab|pau|dis|sor)-([fm][123])-([a-z]\d)")
CODES = {
    "neu": "neutral",
    "gio": "happy",
    "tri": "sad",
    "rab": "angry",
    "pau": "fearful",
    "dis": "disgust",
    "sor": "surprised",
}


def parse(path: PurePath) -> Fields:
    """Read a clip's fields from its name."""
    match = NAME.fullmatch(path.stem)
    if not match:
        raise CorpusError("is not named like dis-f1-b1.wav")
    emotion, speaker, sentence = match.groups()
    return {
        "emotion": CODES[emotion],
        "speaker": speaker,
        "gender": "female" if speaker[0] == "f" else "male",
        "statement": sentence,
    }


EMOVO = Corpus(
    name="emovo",
    title="EMOVO",
    emotions=tuple(CODES.values()),
    language="it",
    licence="research use",
    homepage="https://aclanthology.org/L14-1478/",
    open=lambda _root: parse,
)
