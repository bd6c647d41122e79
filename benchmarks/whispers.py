"""Does a checkpoint take whispering for speech, and which emotions does it hear in it?

    python benchmarks/whispers.py [--checkpoint FOLDER]

The speech synthesiser eSpeak NG (`espeak-ng` on the PATH) says the same sentences, in four languages and at two speeds,
with two whispering and two ordinary voices. No emotion is meant, so `neutral` would be the right answer.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import pandas as pd
from tqdm import tqdm

import spectro

VOICES = {"whisper": "whispered", "whisperf": "whispered", "m3": "spoken", "f2": "spoken"}
WORDS_PER_MINUTE = (130, 175)
SENTENCES = {
    "en": (
        "Kids are talking by the door.",
        "Dogs are sitting by the door.",
        "It's eleven o'clock.",
        "I think I have a doctor's appointment.",
        "Say the word again.",
        "The airplane is almost full.",
        "Please call me back tomorrow.",
        "I cannot find my keys anywhere.",
    ),
    "de": (
        "Der Lappen liegt auf dem Eisschrank.",
        "Heute Abend könnte ich es ihm sagen.",
        "Bitte rufen Sie mich morgen zurück.",
        "Ich finde meine Schlüssel nicht.",
    ),
    "it": (
        "Gli operai si alzano presto.",
        "La cascata fa molto rumore.",
        "Per favore richiamami domani.",
        "Non trovo le chiavi.",
    ),
    "es": (
        "Por favor, llámame mañana.",
        "No encuentro las llaves.",
        "El avión está casi lleno.",
        "Son las once en punto.",
    ),
}


def main() -> None:
    """Synthesise, classify, and print how often each kind of voice gets each answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="default: the shipped one")
    given = parser.parse_args()
    if shutil.which("espeak-ng") is None:
        parser.error("espeak-ng is not installed; it is Debian's package espeak-ng")
    model = spectro.load(given.checkpoint)
    sentences = [(language, text) for language, texts in SENTENCES.items() for text in texts]
    answers = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "said.wav"
        for language, text in tqdm(sentences, unit="sentence"):
            for voice, kind in VOICES.items():
                for speed in WORDS_PER_MINUTE:
                    options = ["-v", f"{language}+{voice}", "-s", str(speed), "-w", str(out)]
                    subprocess.run(["espeak-ng", *options, text], check=True)
                    answers.append({"voice": kind, "label": model.predict_wav(out).label})
    found = pd.DataFrame(answers)
    counts = {voice: own["label"].value_counts().to_dict() for voice, own in found.groupby("voice")}
    print(json.dumps(counts, indent=2))


if __name__ == "__main__":
    main()
