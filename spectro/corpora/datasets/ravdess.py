"""RAVDESS: Ryerson Audio-Visual Database of Emotional Speech and Song (Livingstone & Russo, 2018).

Names are seven numbers, `03-01-06-01-02-01-12.wav`: modality (03 is audio only), vocal channel (01 speech, 02 song),
emotion, intensity, statement, repetition, actor. Odd actors are male. The distribution on Kaggle contains every
clip twice, in a second copy of the tree. Source: doi:10.1371/journal.pone.0196391.
"""

import re
from functools import partial
from pathlib import PurePath

from spectro.corpora.table import EMOTIONS, Corpus, Fields
from spectro.errors import CorpusError

NAME = re.compile(r"(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)")
CHANNELS = {"01": "speech", "02": "song"}
CODES = {f"{number:02}": emotion for number, emotion in enumerate(EMOTIONS[:8], start=1)}
INTENSITIES = {"01": "normal", "02": "strong"}
STATEMENTS = {"01": "kids", "02": "dogs"}
ACTORS = 24


def parse(path: PurePath, vocal_channel: str) -> Fields:
    """Read a clip's fields from its name; `vocal_channel` is the required one, `speech` or `song`."""
    match = NAME.fullmatch(path.stem)
    if not match:
        raise CorpusError("is not named like 03-01-06-01-02-01-12.wav")
    modality, channel, emotion, intensity, statement, repetition, actor = match.groups()
    if modality != "03":
        raise CorpusError(f"is of modality {modality}, not 03 (audio only)")
    if CHANNELS.get(channel) != vocal_channel:
        raise CorpusError(f"is {CHANNELS.get(channel, 'of an unknown vocal channel')}, not {vocal_channel}")
    if emotion not in CODES or intensity not in INTENSITIES or statement not in STATEMENTS:
        raise CorpusError("has an unknown emotion, intensity or statement number")
    if not 1 <= int(actor) <= ACTORS:
        raise CorpusError(f"names actor {actor}; actors are 01 to {ACTORS}")
    return {
        "emotion": CODES[emotion],
        "speaker": str(int(actor)),
        "gender": "male" if int(actor) % 2 else "female",
        "vocal_channel": vocal_channel,
        "intensity": INTENSITIES[intensity],
        "statement": STATEMENTS[statement],
        "repetition": str(int(repetition)),
    }


RAVDESS = Corpus(
    name="ravdess",
    title="RAVDESS speech",
    emotions=EMOTIONS[:8],
    language="en",
    licence="CC BY-NC-SA 4.0",
    homepage="https://zenodo.org/records/1188976",
    open=lambda _root: partial(parse, vocal_channel="speech"),
)
RAVDESS_SONG = Corpus(
    name="ravdess-song",
    title="RAVDESS song",
    emotions=EMOTIONS[:6],
    language="en",
    licence="CC BY-NC-SA 4.0",
    homepage="https://zenodo.org/records/1188976",
    voices="ravdess",
    open=lambda _root: partial(parse, vocal_channel="song"),
)
