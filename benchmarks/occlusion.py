"""Does the explanation's map matter? Does covering what it marks change the prediction more than covering other places?

    python benchmarks/occlusion.py RAVDESS_FOLDER --checkpoint FOLDER [--actors 2 5 14 15 16] [--clips 200]

In each picture's columns with sound, the fifth of the pixels where the map is highest is covered with the picture's
mean gray. For comparison, the same shape is shifted cyclically in time and frequency to places that overlap it least
(the best 8 of 64 random shifts, seed 0): same area, same shape, other place. The output has the mean drops in the
probability of the predicted label, and how often the marked places matter more.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spectro.corpora import registry
from spectro.predict.explain import explain
from spectro.predict.predictor import Predictor

SHARE, SHIFTS, TRIED = 0.2, 8, 64
Mask = npt.NDArray[np.bool_]


def marked(heat: npt.NDArray[np.float32]) -> Mask:
    """Return the places where the map is highest."""
    return heat >= np.quantile(heat, 1 - SHARE)


def elsewhere(mask: Mask, generator: np.random.Generator) -> list[Mask]:
    """Return copies of the mask, shifted to places that overlap it least."""
    height, width = mask.shape
    shifts = zip(generator.integers(height, size=TRIED), generator.integers(width, size=TRIED), strict=True)
    tried = [np.roll(mask, shift, axis=(0, 1)) for shift in shifts]
    return sorted(tried, key=lambda one: int((one & mask).sum()))[:SHIFTS]


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="RAVDESS, as folders of WAV files")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a network that was not trained on the actors")
    parser.add_argument("--actors", nargs="+", type=int, help="default: the checkpoint's test actors")
    parser.add_argument("--clips", type=int, default=200)
    given = parser.parse_args()
    predictor = Predictor(given.checkpoint)
    split = predictor.checkpoint.split
    if split is None:
        parser.error(f"{given.checkpoint}: does not say whom it was trained on; choose another checkpoint")
    actors = list(map(str, given.actors or split.speakers["test"]))
    if not actors or set(actors) & set(split.speakers["train"]):
        parser.error(f"{given.checkpoint}: was trained on these actors; choose another checkpoint, or other --actors")
    table = registry.scan("ravdess", given.source).clips
    table = table[table["speaker"].isin(actors)].sample(given.clips, random_state=0)
    generator = np.random.default_rng(0)
    drops, others, overlaps = [], [], []
    for path in table["path"]:
        found = explain(predictor, path)
        sound = np.flatnonzero(found.picture.max(axis=0))
        columns = slice(sound[0], sound[-1] + 1)
        if not found.heat[:, columns].any():
            continue
        mask = marked(found.heat[:, columns])
        masks = [mask, *elsewhere(mask, generator)]
        gray = round(float(found.picture[:, columns].mean()))
        covered = []
        for one in masks:
            picture = found.picture.copy()
            picture[:, columns][one] = gray
            covered.append(picture)
        place = predictor.labels.index(found.label)
        after = predictor.scores(covered).probabilities[:, place]
        before = found.prediction.probabilities[found.label]
        drops.append(before - after[0])
        others.append(before - after[1:].mean())
        overlaps.append(np.mean([(one & mask).sum() / mask.sum() for one in masks[1:]]))
    wins = np.array(drops) > np.array(others)
    samples = generator.integers(len(drops), size=(2000, len(drops)))
    ratio = np.array(drops)[samples].mean(1) - np.array(others)[samples].mean(1)
    content = {
        "clips": len(drops),
        "mean drop, marked places": float(np.mean(drops)),
        "mean drop, other places": float(np.mean(others)),
        "difference, 95 % of a bootstrap over clips": np.quantile(ratio, (0.025, 0.975)).tolist(),
        "marked places matter more, share of clips": float(wins.mean()),
        "overlap of the others with the marked places": float(np.mean(overlaps)),
    }
    print(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
