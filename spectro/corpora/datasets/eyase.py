"""EYASE: Egyptian Arabic Semi-natural Emotion speech (Abdel-Hamid, Speech Communication 122, 2020).

Excerpts of a television series. Names are `Female01/fm01_ang (1).wav`: speaker, emotion, number. The folder gives the
speaker: files of the second woman are named fm01, too. Sentences are not identified.
Source: doi:10.1016/j.specom.2020.04.005.
"""

import re
from pathlib import PurePath

from spectro.corpora.table import Corpus, Fields
from spectro.errors import CorpusError

FOLDER = re.compile(r"(Female|Male)(\d\d)", re.IGNORECASE)
NAME = re.compile(r"(?:fm|ml)\d\d_(ang|hap|neu|sad) \((\d+)\)")
CODES = {"neu": "neutral", "hap": "happy", "sad": "sad", "ang": "angry"}


def parse(path: PurePath) -> Fields:
    """Read a clip's fields from its name and its folder's name."""
    folder, match = FOLDER.fullmatch(path.parent.name), NAME.fullmatch(path.stem)
    if not folder or not match:
        raise CorpusError("is not named like Female01/fm01_ang (1).wav")
    gender = folder[1].lower()
    speaker = f"{gender}{folder[2]}"
    return {
        "clip_id": f"eyase_{speaker}_{match[1]}_{match[2]}",
        "emotion": CODES[match[1]],
        "speaker": speaker,
        "gender": gender,
    }


EYASE = Corpus(
    name="eyase",
    title="EYASE",
    emotions=tuple(CODES.values()),
    language="ar",
    licence="research use, on request",
    homepage="https://doi.org/10.1016/j.specom.2020.04.005",
    open=lambda _root: parse,
)
