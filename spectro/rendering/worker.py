"""One clip and all its copies -> PNGs: what the processes of a rendering do.

Apart from the rendering stage, so that a process that draws starts without pandas.
"""

from dataclasses import dataclass
from pathlib import Path

from spectro.audio import augment, recording
from spectro.audio.augment import AugmentSettings
from spectro.errors import SpectroError
from spectro.files import MESSAGE, content_mark, printable, write_bytes
from spectro.picture import png, spectrogram
from spectro.picture.spec import Image, SpectrogramSpec

IMAGES = "images"


@dataclass(frozen=True)
class Recipe:
    """How clips are drawn.

    Args:
        out: the rendering's folder.
        spec: what a picture looks like.
        augment: how copies are altered.
        max_duration_s: recordings longer than this are failures, in seconds.
        mark: what tells pictures of these settings from others.
    """

    out: Path
    spec: SpectrogramSpec
    augment: AugmentSettings
    max_duration_s: float
    mark: str


@dataclass(frozen=True, slots=True)
class Job:
    """One clip and all its copies: decoded once."""

    clip_id: str
    path: str
    copies: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one copy: either it has an image, or an error."""

    clip_id: str
    copy: int
    image: str = ""
    augmentation: str = ""
    parameters: str = "{}"
    error: str = ""
    reused: bool = False


def render_clips(jobs: list[Job], recipe: Recipe) -> list[list[Outcome]]:
    """Draw some clips, each with its copies, or find them drawn.

    Args:
        jobs: the clips.
        recipe: how they are drawn.

    Returns:
        for each clip, what became of its untouched copy and of each other; of one that cannot be read, one error.
    """
    return [_render_clip(job, recipe) for job in jobs]


def _render_clip(job: Job, recipe: Recipe) -> list[Outcome]:
    """Draw one clip and its copies, or find them drawn."""
    try:
        identity = f"{recipe.mark}:{content_mark(Path(job.path))}"
    except (OSError, ValueError):
        identity = ""  # reading it will say what is wrong
    outcomes: list[Outcome] = []
    samples: recording.Waveform | None = None
    for copy in range(job.copies + 1):
        name = f"{IMAGES}/{job.clip_id}_{copy}.png"
        text = _finished(recipe.out / name, job, copy, identity)
        if text is not None:
            outcomes.append(_outcome(job, copy, name, text, reused=True))
            continue
        try:
            if samples is None:
                samples = spectrogram.read(job.path, recipe.spec, max_duration_s=recipe.max_duration_s)
            pixels, drawn = _picture(samples, job, copy, recipe)
            text = {"identity": identity, "copy": str(copy), **drawn}
            content = png.encode(pixels, recipe.spec, job.clip_id, **text)
        except SpectroError as error:
            outcomes.append(Outcome(job.clip_id, copy, error=printable(str(error), MESSAGE)))
            if samples is None:
                break  # no copy can do better
            continue
        write_bytes(recipe.out / name, content)
        outcomes.append(_outcome(job, copy, name, text))
    return outcomes


def _finished(path: Path, job: Job, copy: int, identity: str) -> dict[str, str] | None:
    """Return what the PNG says of itself if it shows this copy of this very content by this recipe."""
    if not identity:
        return None
    text = png.read_text(path)
    expected = {"identity": identity, "clip": job.clip_id, "copy": str(copy)}
    return text if all(text.get(key) == value for key, value in expected.items()) else None


def _picture(samples: recording.Waveform, job: Job, copy: int, recipe: Recipe) -> tuple[Image, dict[str, str]]:
    """Return the pixels of a copy, and what the PNG and the index say of how it was altered."""
    if copy == 0:
        return spectrogram.render(samples, recipe.spec), {}
    drawn = augment.sample(recipe.augment, job.clip_id, copy)
    altered = augment.apply(samples, recipe.spec.sample_rate, drawn)
    text = {"augmentation": drawn.name, "parameters": drawn.to_json()}
    return spectrogram.render(altered, recipe.spec), text


def _outcome(job: Job, copy: int, name: str, text: dict[str, str], *, reused: bool = False) -> Outcome:
    return Outcome(
        clip_id=job.clip_id,
        copy=copy,
        image=name,
        augmentation=text.get("augmentation", ""),
        parameters=text.get("parameters", "{}"),
        reused=reused,
    )
