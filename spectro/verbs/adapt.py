"""The adapt verb: adapt a checkpoint to recordings without labels."""

import random
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from spectro.audio import recording
from spectro.errors import PredictionError
from spectro.files import MESSAGE, printable
from spectro.model import checkpoint as checkpoints
from spectro.model.locate import default_checkpoint
from spectro.model.metadata import CARD_FILE, DESCRIPTION_FILE, WEIGHTS_FILE, identity
from spectro.outputs import LOCK, claimed
from spectro.predict.adapt import SHARE, adapted, check_adaptable, check_share, with_pictures
from spectro.predict.inputs import expand, local
from spectro.predict.predictor import Predictor
from spectro.predict.results import NO_SPEECH
from spectro.schema import check_least

FEW = 32
"""Below this many recordings, the verb says that they are few."""


@dataclass(frozen=True, kw_only=True)
class AdaptSettings:
    """Adapt a checkpoint to your recordings, without labels.

    A microphone, a line, a room or a language that the network was not trained on shifts what its layers see. This
    command classifies your recordings, leaves out those without speech, and moves the statistics of the network's batch
    norms, or of its features if it has none, towards those of the others. Nothing else changes. The result is a
    checkpoint: name it with --checkpoint.
    The recordings should be like those to classify later, with their usual mixture of emotions: recordings of anger
    alone would teach it that anger is normal. Exit code 1 means that some recordings could not be used.

    Args:
        inputs: recordings, rendered pictures (.png), folders (searched recursively), or lists: a .txt with one path per
            line, or a .csv with a column `path`; each may be an address.
        checkpoint: checkpoint folder; null for the shipped checkpoint.
        out: folder of the adapted checkpoint; null for checkpoints/NAME-adapted.
        share: weight of your recordings in the statistics, above 0 and at most 1; the rest is that of the recordings
            that the network was trained on.
        most: maximum number of recordings; if there are more, a random sample of this many is used.
        seed: seed of the sample.
        min_speech: leave out recordings whose probability of speech is below this, 0 to 1; 0 leaves none out.
        max_duration_s: reject recordings longer than this, in seconds. If a recording is longer than the picture, its
            middle is used, or the part with the most speech.
        batch_size: pictures per batch.
        device: cpu, cuda, ...; null uses a GPU if one is available.
    """

    inputs: list[str] = field(default_factory=list)
    checkpoint: Path | None = None
    out: Path | None = None
    share: float = SHARE
    most: int = 1_000
    seed: int = 0
    min_speech: float = 0.5
    max_duration_s: float = recording.DEFAULT_MAX_DURATION_S
    batch_size: int = 32
    device: str | None = None

    def __post_init__(self) -> None:
        check_least(self, PredictionError, most=2, batch_size=1, seed=0)
        check_share(self.share)


def run(settings: AdaptSettings) -> int:
    """Run the verb; returns its exit code."""
    folder = (settings.checkpoint or default_checkpoint()).resolve()
    out = settings.out or Path("checkpoints", f"{folder.name}-adapted")
    paths = list(dict.fromkeys(expand(settings.inputs)))
    if not paths:
        raise PredictionError(f"no recording in {', '.join(map(printable, settings.inputs))}")
    if len(paths) > settings.most:
        chosen = sorted(random.Random(settings.seed).sample(range(len(paths)), settings.most))
        print(f"{settings.most} of {len(paths)} recordings are sampled; see --most", file=sys.stderr)
        paths = [paths[place] for place in chosen]
    checkpoint = checkpoints.load(folder)
    check_adaptable(checkpoint)  # before anything is rendered
    predictor = Predictor(
        checkpoint,
        engine="torch",
        device=settings.device,
        max_duration_s=settings.max_duration_s,
        min_speech=settings.min_speech,
    )
    files = [out / name for name in (WEIGHTS_FILE, DESCRIPTION_FILE, CARD_FILE)]
    read = [folder / name for name in (WEIGHTS_FILE, DESCRIPTION_FILE)]
    with claimed(files, lock=out / LOCK, error=PredictionError, inputs=local([*settings.inputs, *paths, *read])):
        pictures, failed, silent = [], 0, 0
        rows = with_pictures(predictor, paths, batch_size=settings.batch_size)
        for row, picture in tqdm(rows, total=len(paths), desc="rendering", unit="clip", file=sys.stderr):
            if picture is None:
                tqdm.write(f"spectro adapt: {printable(f'{row.path}: {row.error}', MESSAGE)}", file=sys.stderr)
                failed += 1
            elif row.label == NO_SPEECH:
                silent += 1
            else:
                pictures.append(picture)
        print(f"{len(pictures)} recordings are used, {silent} hold no speech, {failed} failed", file=sys.stderr)
        if 2 <= len(pictures) < FEW:
            print(f"{len(pictures)} recordings are few; {FEW} or more give steadier statistics", file=sys.stderr)
        of = f"{folder.name} ({identity(folder)})"
        found = adapted(checkpoint, pictures, of=of, share=settings.share, batch_size=settings.batch_size)
        found.net.cpu()
        checkpoints.save(found, out, dtype=found.about.dtype or "float32")
    print(f"adapted to {len(pictures)} recordings; use it with --checkpoint {printable(out)}")
    return 1 if failed else 0
