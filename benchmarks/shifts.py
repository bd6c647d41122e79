"""Are predictions better if a picture is shifted to several positions and the probabilities are averaged?

    python benchmarks/shifts.py CHECKPOINT RENDERING

Each picture is shifted cyclically in time (by 12 frames to either side) and in frequency (by 2 mel bands), and the
probabilities are averaged. The clips are those of RENDERING by the checkpoint's validation speakers, because averaging
is a design choice. For each kind of shift, the output has the gain in UAR over the unshifted picture, with its 95 %
interval over speakers.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from spectro.corpora.labels import label_clips
from spectro.evaluate.intervals import by_group, gain
from spectro.metrics import figures
from spectro.picture import png
from spectro.predict.predictor import Predictor
from spectro.rendering.index import read_index

FRAMES, BANDS = 12, 2
MOVES = {"time": [(0, -FRAMES), (0, FRAMES)], "frequency": [(-BANDS, 0), (BANDS, 0)]}
MOVES["both"] = MOVES["time"] + MOVES["frequency"]


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("rendering", type=Path, help="folder that spectro render wrote, with the checkpoint's spec")
    given = parser.parse_args()
    predictor = Predictor(given.checkpoint)
    data, split = predictor.checkpoint.data, predictor.checkpoint.split
    if data is None or split is None or not split.speakers["valid"]:
        parser.error(f"{given.checkpoint}: has no validation speakers; name a checkpoint that held some out")
    index, spec = read_index(given.rendering)
    if spec != predictor.checkpoint.spec:
        parser.error(f"{given.rendering}: rendered with another spec than the checkpoint's; render it with that spec")
    clips, _labels = label_clips(index[index["copy"] == 0], data.scheme)
    clips = clips[clips["speaker"].isin(split.speakers["valid"])]
    pictures = np.stack([png.read(given.rendering / name).pixels for name in clips["image"]])
    targets = np.array([predictor.labels.index(label) for label in clips["label"]])

    def moved(move: tuple[int, int]) -> np.ndarray:
        found = [
            predictor.scores(list(np.roll(pictures[at : at + 32], move, axis=(1, 2)))).probabilities
            for at in range(0, len(pictures), 32)
        ]
        return np.concatenate(found)

    def by_speaker(probabilities: np.ndarray) -> dict[str, np.ndarray]:
        return by_group(targets, probabilities.argmax(1), clips["speaker"].to_numpy(str), len(predictor.labels))

    plain = moved((0, 0))
    base = by_speaker(plain)
    content: dict[str, object] = {
        "clips": len(clips),
        "speakers": len(base),
        "uar": figures(np.sum(list(base.values()), 0)).uar,
    }
    for name, moves in MOVES.items():
        content[name] = gain(base, by_speaker(np.mean([plain, *map(moved, moves)], axis=0)))
    print(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
