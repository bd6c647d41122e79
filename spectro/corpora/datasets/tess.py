"""TESS: Toronto Emotional Speech Set (Pichora-Fuller & Dupuis, 2020).

Names are `OAF_back_angry.wav`: speaker (an older and a younger woman), word, emotion; in one clip the speaker is
`OA`. `ps` is pleasant surprise. With two speakers, the only speaker-independent protocol is `loso` without validation
speakers, so TESS is for training with other corpora. Source: doi:10.5683/SP2/E8H2MF.
"""

import re
from pathlib import PurePath

from spectro.corpora.table import Corpus, Fields
from spectro.errors import CorpusError

NAME = re.compile(r"(OAF|YAF|OA)_([a-z]+)_(angry|disgust|fear|happy|neutral|ps|sad)", re.IGNORECASE)
CODES = {
    "neutral": "neutral",
    "happy": "happy",
    "sad": "sad",
    "angry": "angry",
    "fear": "fearful",
    "disgust": "disgust",
    "ps": "surprised",
}


def parse(path: PurePath) -> Fields:
    """Read a clip's fields from its name."""
    match = NAME.fullmatch(path.stem)
    if not match:
        raise CorpusError("is not named like OAF_back_angry.wav")
    return {
        "emotion": CODES[match[3].lower()],
        "speaker": match[1].upper().ljust(3, "F"),
        "gender": "female",
        "statement": match[2].lower(),
    }


TESS = Corpus(
    name="tess",
    title="TESS",
    emotions=tuple(CODES.values()),
    language="en",
    licence="CC BY-NC-ND 4.0",
    homepage="https://doi.org/10.5683/SP2/E8H2MF",
    open=lambda _root: parse,
)
