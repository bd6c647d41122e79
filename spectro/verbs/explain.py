"""The explain verb: map the parts of a picture that led to the prediction."""

import io
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from spectro.addresses import Place
from spectro.errors import AudioError, ImageError, PredictionError
from spectro.files import MESSAGE, printable, write_bytes
from spectro.model.locate import default_checkpoint
from spectro.outputs import LOCK, claimed
from spectro.predict.explain import explain, plot
from spectro.predict.inputs import expand, local, stems
from spectro.predict.predictor import Predictor


@dataclass(frozen=True, kw_only=True)
class ExplainSettings:
    """Show which parts of a recording's spectrogram led to the prediction (Grad-CAM).

    Each recording gets a .png with axes in seconds and hertz, and a .npy with the map (float32, 0 to 1, of the
    picture's height and width). Exit code 1 means that some recordings failed.

    Args:
        inputs: recordings, rendered pictures (.png), folders (searched recursively), or lists: a .txt with one path per
            line, or a .csv with a column `path`.
        out: output folder.
        checkpoint: checkpoint folder; null for the shipped checkpoint.
        label: label to explain; null explains the most likely one.
        device: cpu, cuda, ...; null uses a GPU if one is available.
    """

    inputs: list[str] = field(default_factory=list)
    out: Path = Path("explanations")
    checkpoint: Path | None = None
    label: str | None = None
    device: str | None = None


def run(settings: ExplainSettings) -> int:
    """Run the verb; returns its exit code."""
    paths = list(dict.fromkeys(expand(settings.inputs)))
    if not paths:
        raise PredictionError(f"no recording in {', '.join(map(printable, settings.inputs))}")
    outs = [settings.out / name for name in stems(paths)]
    files = [one.with_name(one.name + ending) for one in outs for ending in (".png", ".npy")]
    with claimed(files, lock=settings.out / LOCK, error=PredictionError, inputs=local([*settings.inputs, *paths])):
        return _run(settings, paths, outs)


def _run(settings: ExplainSettings, paths: list[Place], outs: list[Path]) -> int:
    """Explain recordings into files that this run has claimed; returns the exit code."""
    predictor = Predictor(settings.checkpoint or default_checkpoint(), device=settings.device, engine="torch")
    failed = 0
    for path, stem in zip(tqdm(paths, desc="explaining", unit="clip", file=sys.stderr), outs, strict=True):
        try:
            found = explain(predictor, path, label=settings.label)
        except (AudioError, ImageError) as error:
            print(f"spectro explain: {printable(str(error), MESSAGE)}", file=sys.stderr)
            failed += 1
            continue
        array = io.BytesIO()
        np.save(array, found.heat)
        write_bytes(stem.with_name(stem.name + ".png"), plot(found, title=printable(path.name, 60)))
        write_bytes(stem.with_name(stem.name + ".npy"), array.getvalue())
    print(f"{len(paths) - failed} of {len(paths)} recordings explained in {printable(settings.out)}", file=sys.stderr)
    return 0 if not failed else 2 if failed == len(paths) else 1
