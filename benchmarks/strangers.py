"""How accurate is a network on unseen speakers of an unseen corpus, directly and over a telephone?

    python benchmarks/strangers.py CONFIG RENDERING... --out FOLDER [--folds CORPUS...] [--seeds 0 ...]
        [--sounds RENDERING...]

For each corpus of the renderings (or of --folds), a network is trained on all others with CONFIG, a settings file of
`spectro finetune`. It is measured on every clip of that corpus whose label the others have: as it is, and over a
simulated telephone (300 to 3,400 Hz, 8 kHz, mu-law). Both are measured again with the network adapted to clips of other
speakers in the same condition, as by `spectro adapt`, but clips that it takes for no speech are kept: speakers are
divided into at most five groups, and the network for a group is adapted to the others. Only labels that both sides have
are possible answers. Training is resumed, and finished measurements are not repeated.

FOLDER/strangers.csv has a row for each corpus, seed and condition: UAR with its interval over speakers, accuracy,
expected calibration error, accuracy of the more confident half of the predictions, and the temperature that would have
suited these speakers best. A corpus that is used to choose designs may also choose the temperature: pass it to the
other folds with --temperature, instead of the one that suits the validation speakers of the training corpora.

With --sounds, renderings of sounds without speech, `refused` is the share of a corpus's clips that a network not
trained on it classifies as no speech. If CONFIG sets `remember`, sounds are left out like corpora: a corpus's network
is trained without some of the sources, in turn, and `answered` is the share of their `sounds` that get an emotion.
Recordings are read from the paths in the renderings.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.signal
import soundfile
import torch
from tqdm import tqdm

from spectro.audio import recording
from spectro.cli import parse
from spectro.corpora.splits import natural
from spectro.errors import AudioError
from spectro.evaluate.intervals import bootstrap, by_group, calibration, interval
from spectro.files import read_json, write_json
from spectro.metrics import figures
from spectro.model.checkpoint import Checkpoint
from spectro.picture import png
from spectro.predict.adapt import adapted
from spectro.predict.predictor import Predictor
from spectro.rendering.index import read_indexes
from spectro.train.finetune import finetune
from spectro.train.finish import fit_temperature
from spectro.train.settings import FinetuneSettings

TELEPHONE = 8_000
CONDITIONS = ("as it is", "telephone", "adapted", "telephone, adapted")
GROUPS = 5
MOST = 1_000
"""Maximum number of clips that a network is adapted to."""


def over_a_telephone(path: str, folder: Path) -> Path:
    """Write a recording as heard over a telephone: 300 to 3,400 Hz, 8 kHz, mu-law; return its path."""
    samples = recording.read(Path(path), sample_rate=TELEPHONE, trim_db=None)
    band = scipy.signal.butter(6, (300, 3_400), "bandpass", fs=TELEPHONE, output="sos")
    band_limited = scipy.signal.sosfiltfilt(band, samples)
    out = folder / "telephone.wav"
    soundfile.write(out, band_limited / max(1.0, float(np.abs(band_limited).max())), TELEPHONE, subtype="ULAW")
    return out


def groups(speakers: npt.NDArray[np.str_]) -> list[npt.NDArray[np.int64]]:
    """Return the places of the clips of each group of speakers."""
    names = natural(set(speakers.tolist()))
    return [np.flatnonzero(np.isin(speakers, names[start::GROUPS])) for start in range(min(GROUPS, len(names)))]


def measure(checkpoint: Checkpoint, clips: pd.DataFrame, condition: str) -> dict[str, object]:
    """Return the figures of a network on clips of one corpus."""
    predictor = Predictor(checkpoint, engine="torch")
    labels = predictor.labels
    possible = np.isin(labels, clips["emotion"].unique())
    pictures, kept = [], []
    with tempfile.TemporaryDirectory() as folder:
        for place, (image, path) in enumerate(zip(clips["image"], tqdm(clips["path"], desc=condition), strict=True)):
            try:
                if condition.startswith("telephone"):
                    pictures.append(predictor.render(over_a_telephone(path, Path(folder))))
                else:
                    pictures.append(png.read(Path(image), predictor.checkpoint.spec).pixels)
                kept.append(place)
            except AudioError as error:
                tqdm.write(str(error))
    own, temperature = clips.iloc[kept], predictor.checkpoint.temperature
    speakers = own["speaker"].to_numpy(str)
    everybody = np.arange(len(pictures))
    probabilities, speech = np.zeros((len(pictures), len(labels))), np.full(len(pictures), np.nan)
    for group in groups(speakers) if condition.endswith("adapted") else [everybody]:
        used = predictor
        if condition.endswith("adapted"):
            others = np.random.default_rng(0).permutation(np.setdiff1d(everybody, group))[:MOST]
            shown = [pictures[place] for place in others]
            used = Predictor(adapted(checkpoint, shown, of=checkpoint.about.backbone), engine="torch")
        for places in np.array_split(group, range(64, len(group), 64)):
            scores = used.scores([pictures[place] for place in places])
            probabilities[places] = scores.probabilities
            speech[places] = np.nan if scores.speech is None else scores.speech
    probabilities = probabilities * possible / (probabilities * possible).sum(axis=1, keepdims=True)
    detected: dict[str, object] = {}
    if predictor.checkpoint.speech is not None:
        detected["refused"] = round(float((speech < predictor.min_speech).mean()), 4)
    if (known := predictor.checkpoint.sounds) is not None and known.sources and condition == CONDITIONS[0]:
        counts = [one.sounds for one in known.sources.values()]
        shares = [one.answered for one in known.sources.values()]
        detected |= {"sounds": sum(counts), "answered": round(float(np.average(shares, weights=counts)), 4)}
    with np.errstate(divide="ignore"):
        logs = np.log(probabilities)
    targets = np.array([labels.index(label) for label in own["emotion"]])
    matrices = by_group(targets, probabilities.argmax(1), speakers, len(labels))
    found = figures(np.sum(list(matrices.values()), axis=0))
    low, high = interval([one.uar for one in bootstrap(matrices)])
    surest = np.argsort(-probabilities.max(axis=1))[: len(probabilities) // 2]
    return {
        "clips": len(own),
        "failed": len(clips) - len(own),
        "speakers": len(set(speakers)),
        "labels_shared": int(possible.sum()),
        "test_uar": round(found.uar, 4),
        "low": low,
        "high": high,
        "wa": round(found.wa, 4),
        "ece": calibration(probabilities, targets)["ece"],
        "nll": calibration(probabilities, targets)["nll"],
        "temperature": temperature,
        "best_temperature": round(temperature * fit_temperature(torch.tensor(logs), torch.tensor(targets)), 3),
        **detected,
        "surer_half_wa": round(float((probabilities.argmax(1) == targets)[surest].mean()), 4),
        "recalls": json.dumps({one: round(float(r), 3) for one, r in zip(labels, found.recall, strict=True) if r == r}),
    }


def main() -> None:
    """Train, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("renderings", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folds", nargs="+", help="corpora to test; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sounds", type=Path, nargs="+", default=[], help="renderings of sounds without speech")
    parser.add_argument(
        "--temperature", type=float, help="of the probabilities; default: the one that suits the validation speakers"
    )
    given = parser.parse_args()
    index, _spec = read_indexes(given.renderings)
    index = index[index["copy"] == 0]
    base = parse("finetune", FinetuneSettings, ["--config", str(given.config)])
    for seed in given.seeds:
        corpora = sorted(set(index["corpus"]))
        for fold in given.folds or corpora:
            out = given.out / f"{fold}-{seed}"
            unheard = given.sounds[corpora.index(fold) :: len(corpora)] if base.remember else []
            settings = replace(
                base,
                index=list(given.renderings),
                sounds=[one for one in given.sounds if one not in unheard],
                unheard_sounds=unheard,
                protocol="cross-corpus",
                fold=fold,
                seed=seed,
                out=out,
                test=False,
            )
            known = read_json(out / "strangers.json") or []
            if given.sounds and not all("refused" in one for one in known):
                known = []  # measured before sounds were given
            alone = index.loc[index["corpus"] == fold, "speaker"].nunique() < 2  # nobody else to adapt to
            conditions = CONDITIONS[:2] if alone else CONDITIONS
            if len(known) == len(conditions):
                continue
            checkpoint = finetune(settings)
            if given.temperature is not None:
                about = msgspec.structs.replace(checkpoint.about, temperature=given.temperature)
                checkpoint = Checkpoint(net=checkpoint.net, about=about)
            clips = index[(index["corpus"] == fold) & index["emotion"].isin(checkpoint.about.labels)]
            for condition in conditions[len(known) :]:
                known.append(
                    {
                        "system": given.config.stem + ("" if condition == CONDITIONS[0] else f", {condition}"),
                        "config": given.config.stem,
                        "corpus": "+".join(sorted(set(index["corpus"]))),
                        "labels": "emotion",
                        "protocol": "cross-corpus",
                        "fold": fold,
                        "seed": seed,
                        "transductive": False,
                        **measure(checkpoint, clips, condition),
                    }
                )
                write_json(out / "strangers.json", known)
    rows = [row for path in sorted(given.out.glob("*/strangers.json")) for row in read_json(path)]
    table = pd.DataFrame(rows)
    table.to_csv(given.out / "strangers.csv", index=False)
    shown = [
        "system",
        "fold",
        "seed",
        "clips",
        "labels_shared",
        "test_uar",
        "low",
        "high",
        "wa",
        "ece",
        "surer_half_wa",
    ]
    shown += [name for name in ("refused", "sounds", "answered") if name in table]
    print(table[[*shown, "temperature", "best_temperature"]].to_string(index=False))
    print(table.groupby("system", sort=False)[["test_uar", "wa", "ece", "surer_half_wa"]].mean().round(4).to_string())


if __name__ == "__main__":
    main()
