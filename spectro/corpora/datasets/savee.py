"""SAVEE: Surrey Audio-Visual Expressed Emotion (Jackson & Haq, 2014).

Four men. Names are `AudioData/DC/a01.wav` in the original tree and `DC_a01.wav` in Kaggle's flat one: speaker, emotion
letters, sentence. Source: http://kahlan.eps.surrey.ac.uk/savee/.
"""

import re
from pathlib import PurePath

from spectro.corpora.table import Corpus, Fields
from spectro.errors import CorpusError

NAME = re.compile(r"(?:(DC|JE|JK|KL)[_/])(sa|su|a|d|f|h|n)(\d\d)")
CODES = {
    "n": "neutral",
    "h": "happy",
    "sa": "sad",
    "a": "angry",
    "f": "fearful",
    "d": "disgust",
    "su": "surprised",
}


def parse(path: PurePath) -> Fields:
    """Read a clip's fields from its name, and from its folder's name if its own has no speaker."""
    match = NAME.fullmatch(path.stem) or NAME.fullmatch(f"{path.parent.name}/{path.stem}")
    if not match:
        raise CorpusError("is not named like DC/a01.wav or DC_a01.wav")
    speaker, emotion, sentence = match.groups()
    return {
        "clip_id": f"savee_{speaker}_{emotion}{sentence}",
        "emotion": CODES[emotion],
        "speaker": speaker,
        "gender": "male",
        "statement": f"{emotion}{sentence}",
    }


SAVEE = Corpus(
    name="savee",
    title="SAVEE",
    emotions=tuple(CODES.values()),
    language="en",
    licence="research use, on registration",
    homepage="http://kahlan.eps.surrey.ac.uk/savee/",
    open=lambda _root: parse,
)
