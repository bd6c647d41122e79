"""ANAD: Arabic Natural Audio Dataset (Klaylat et al., 2018).

Eight recordings of calls, cut into one-second clips: `1sec_segmented_part1/1sec_segmented_part1/V1_1 (1).wav`. The
emotions are in `ANAD.csv` (or `ANAD_Normalized.csv`), columns `name` and `Emotion `, with quotes or blanks around
values. Speakers are unknown; clips of one call share their speakers, so the call (V1 to V8) is used as the speaker.
Source: doi:10.17632/xm232yxf7t.
"""

import re
from pathlib import Path, PurePath

import pandas as pd

from spectro.corpora.table import Corpus, Fields, Parser, clip_id
from spectro.errors import CorpusError

TABLES = ("ANAD.csv", "ANAD_Normalized.csv")
EMOTIONS = ("happy", "angry", "surprised")
NAME = re.compile(r"(V\d+)_.*", re.IGNORECASE)


def open_tables(root: Path) -> Parser:
    """Read the corpus's table of emotions, and return a parser of its files.

    Raises:
        CorpusError: no such table exists under `root`, or it lacks a column.
    """
    tables = [path for name in TABLES for path in sorted(root.rglob(name))]
    if not tables:
        raise CorpusError(f"{root}: has no {' or '.join(TABLES)}, the table of each clip's emotion")
    try:
        table = pd.read_csv(tables[0], dtype=str)
    except (ValueError, OSError) as error:
        raise CorpusError(f"{tables[0]}: is not a readable CSV ({error})") from error
    columns = {column.strip(" '\"").lower(): column for column in table.columns}
    if not {"name", "emotion"} <= set(columns):
        raise CorpusError(f"{tables[0]}: has no columns `name` and `Emotion`")
    table = table[[columns["name"], columns["emotion"]]].dropna()
    names = [PurePath(name.strip(" '\"")).stem for name in table[columns["name"]]]
    emotions = [emotion.strip(" '\"").lower() for emotion in table[columns["emotion"]]]
    by_name = dict(zip(names, emotions, strict=True))

    def parse(path: PurePath) -> Fields:
        match = NAME.fullmatch(path.stem)
        if not match:
            raise CorpusError("is not named like V1_1 (1).wav")
        emotion = by_name.get(path.stem)
        if emotion not in EMOTIONS:
            raise CorpusError(f"has no emotion in {tables[0].name}" if emotion is None else f"is {emotion!r}")
        return {
            "clip_id": clip_id("anad", PurePath(path.name)),
            "emotion": emotion,
            "speaker": match[1].upper(),
        }

    return parse


ANAD = Corpus(
    name="anad",
    title="Arabic Natural Audio Dataset",
    emotions=EMOTIONS,
    language="ar",
    licence="CC BY-NC-SA 4.0",
    homepage="https://doi.org/10.17632/xm232yxf7t",
    open=open_tables,
)
