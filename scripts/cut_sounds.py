"""Cut recordings of sounds and music into pieces of 3 s, for `finetune --sounds`.

    python scripts/cut_sounds.py /usr/share/games/supertux2 sounds/supertux-data --without 'tux_|penny|yeti'
    spectro render --corpus folder --source sounds/supertux-data --spec yamnet --out data/sounds/supertux-data

A recording shorter than 3 s becomes one piece, a longer one at most --most pieces, spread evenly over it. Pieces are
named after their recordings. They lie in one folder, whose name is that of DEST: the class, as `--corpus folder` reads
it. Use --without to leave voices out.
"""

import argparse
import re
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

SECONDS = 3


def starts(frames: int, length: int, most: int) -> list[int]:
    """Return where the pieces of a recording start, all in frames; a remainder shorter than a piece is dropped."""
    count = max(1, min(most, frames // length))
    return [int(start) for start in np.linspace(0, max(0, frames - length), count)]


def cut(source: Path, dest: Path, without: str | None, most: int) -> None:
    """Cut all recordings below `source`, and write the pieces below `dest` as 16-bit WAV files."""
    endings = {f".{one.lower()}" for one in soundfile.available_formats() if one != "RAW"} | {".oga", ".opus"}
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in endings and path.is_file())
    left_out = [path for path in paths if without and re.search(without, str(path.relative_to(source)), re.IGNORECASE)]
    folder = dest / dest.name
    folder.mkdir(parents=True, exist_ok=True)
    pieces = 0
    for path in tqdm([one for one in paths if one not in left_out], desc="cutting", unit="file"):
        try:
            samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
        except soundfile.LibsndfileError as error:
            tqdm.write(f"{path}: {error}; skipped")
            continue
        name = "-".join(path.relative_to(source).with_suffix("").parts)
        for number, start in enumerate(starts(len(samples), SECONDS * rate, most)):
            soundfile.write(folder / f"{name}-{number:02}.wav", samples[start : start + SECONDS * rate], rate, "PCM_16")
            pieces += 1
    print(f"{folder}: {pieces} pieces of {len(paths) - len(left_out)} recordings; left out: {len(left_out)}")


def main() -> None:
    """Read the command line and cut."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of recordings, searched with its subfolders")
    parser.add_argument("dest", type=Path, help="folder to write; its name is the name of the source of sounds")
    parser.add_argument("--without", metavar="PATTERN", help="regular expression of the paths to leave out")
    parser.add_argument("--most", type=int, default=12, help="most pieces of one recording (default: %(default)s)")
    given = parser.parse_args()
    if given.most < 1:
        parser.error("--most must be at least 1")
    if not given.source.is_dir():
        parser.error(f"{given.source}: not a folder")
    cut(given.source, given.dest, given.without, given.most)


if __name__ == "__main__":
    main()
