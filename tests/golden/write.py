"""Write what a release answers, for later releases to be compared with: `python -m tests.golden.write`.

Run it only when a release changes pictures, answers or formats on purpose, and say so in CHANGELOG.md.
"""

import json
import os
import shutil
from pathlib import Path

from spectro.corpora.datasets import synthetic
from spectro.model.backbones import SpectrogramNet
from spectro.model.pretrained import SPECS
from spectro.picture import png, spectrogram
from spectro.picture.spec import SpectrogramSpec
from spectro.predict.predictor import Predictor
from spectro.rendering.render import RenderSettings, render
from spectro.train.data import PictureDataModule
from spectro.train.finetune import run_identity
from spectro.train.settings import FinetuneSettings

HERE = Path(__file__).parent
CHECKPOINTS = HERE.parents[1] / "checkpoints"
SHIPPED = ("yamnet-voices", "mn04-voices", "mobilenet-ravdess")
CLIPS = ((1, "angry"), (1, "sad"), (2, "angry"), (2, "sad"), (3, "angry"), (3, "sad"))
DRAWN = {"default": SpectrogramSpec(), "mn04_as": SPECS["mn04_as-16k"], "yamnet": SPECS["yamnet"]}
SMALL = SpectrogramSpec(n_fft=512, win_length=400, hop_length=320, height=40, width=80)


def clips() -> list[Path]:
    """The recordings, in order."""
    return sorted((HERE / "corpus").rglob("*.wav"))


def answers(checkpoint: str) -> dict[str, dict[str, float]]:
    """What a shipped checkpoint says of each recording."""
    predictor = Predictor(CHECKPOINTS / checkpoint, device="cpu", engine="torch")
    return {clip.name: predictor.predict_wav(clip).probabilities for clip in clips()}


def rendering(out: Path) -> RenderSettings:
    """The settings of the small rendering; its index holds paths as they are given, so they are relative."""
    return RenderSettings(corpus="synthetic", source=Path("corpus"), out=out, spec=SMALL, copies=1, workers=1)


def training(images: Path) -> dict[str, object]:
    """What a fine-tuning on the small rendering is resumed by."""
    settings = FinetuneSettings(
        index=[images], backbone="test_efficientnet", weights="none", protocol="loso", batch_size=2
    )
    data = PictureDataModule(images, protocol="loso", batch_size=2)
    return run_identity(settings, data, SpectrogramNet("test_efficientnet", len(data.labels)))


def main() -> None:
    """Write everything anew."""
    shutil.rmtree(HERE / "corpus", ignore_errors=True)
    shutil.rmtree(HERE / "images", ignore_errors=True)
    synthetic.write(HERE / "all")
    for speaker, emotion in CLIPS:
        name = f"speaker{speaker:02}/speaker{speaker:02}_{emotion}_sentence0_take0.wav"
        (HERE / "corpus" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / "all" / name, HERE / "corpus" / name)
    shutil.rmtree(HERE / "all")
    for name, spec in DRAWN.items():
        picture = spectrogram.render(spectrogram.read(clips()[0], spec, max_duration_s=None), spec)
        (HERE / f"{name}.png").write_bytes(png.encode(picture, spec, name))
    os.chdir(HERE)
    render(rendering(Path("images")))
    told = {"answers": {name: answers(name) for name in SHIPPED}, "training": training(Path("images"))}
    (HERE / "golden.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
