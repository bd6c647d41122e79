"""Cut recordings of sounds and music into pieces of 3 s, for `finetune --sounds`.

    python scripts/cut_sounds.py /usr/share/games/supertux2 sounds/supertux-data --without 'tux_|penny|yeti'
    spectro render --corpus folder --source sounds/supertux-data --spec yamnet --out data/sounds/supertux-data

A recording shorter than 3 s becomes one piece, a longer one at most --most pieces, spread evenly over it. Pieces have
the number and the name of their recording. They lie in one folder, whose name is that of DEST: the class, as `--corpus
folder` reads it. Use --without to leave voices out.
"""

import argparse
import re
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from spectro.audio.recording import recordings

SECONDS = 3


def starts(frames: int, length: int, most: int) -> list[int]:
    """Return where the pieces of a recording start, in frames; pieces do not overlap, and gaps are dropped."""
    count = max(1, min(most, frames // length))
    return [int(start) for start in np.linspace(0, max(0, frames - length), count)]


def cut(source: Path, dest: Path, without: re.Pattern[str] | None, most: int) -> None:
    """Cut all recordings below `source`, and write the pieces below `dest` as 16-bit WAV files."""
    paths = list(recordings(source))
    used = [path for path in paths if not (without and without.search(str(path.relative_to(source))))]
    folder = dest / dest.name
    folder.mkdir(parents=True)
    pieces = 0
    for number, path in enumerate(tqdm(used, desc="cutting", unit="file")):
        try:
            floats = soundfile.info(path).subtype in ("FLOAT", "DOUBLE")  # read as integers, these are not scaled
            samples, rate = soundfile.read(path, dtype="float32" if floats else "int16", always_2d=True)
        except soundfile.LibsndfileError as error:
            tqdm.write(f"{path}: {error}; skipped")
            continue
        for piece, start in enumerate(starts(len(samples), SECONDS * rate, most) if len(samples) else []):
            out = folder / f"{number:04}-{path.stem}-{piece:02}.wav"
            soundfile.write(out, samples[start : start + SECONDS * rate], rate, "PCM_16")
            pieces += 1
    print(f"{folder}: {pieces} pieces of {len(used)} recordings; left out: {len(paths) - len(used)}")


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text}: is not a regular expression ({error})") from error


def main() -> None:
    """Read the command line and cut."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of recordings, searched with its subfolders")
    parser.add_argument("dest", type=Path, help="folder to make; its name is the name of the source of sounds")
    parser.add_argument(
        "--without",
        type=_pattern,
        metavar="PATTERN",
        help="leave out recordings whose path below SOURCE matches this regular expression, in upper or lower case",
    )
    parser.add_argument("--most", type=int, default=12, help="maximum number of pieces of one recording (%(default)s)")
    given = parser.parse_args()
    if given.most < 1:
        parser.error("--most must be at least 1")
    if not given.source.is_dir():
        parser.error(f"{given.source}: not a folder")
    if given.dest.exists():
        parser.error(f"{given.dest}: already exists; name another folder, or remove it")
    cut(given.source, given.dest, given.without, given.most)


if __name__ == "__main__":
    main()
