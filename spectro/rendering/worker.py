"""Render a clip and all its copies as PNGs, in the processes of a rendering.

This module is separate from the rendering stage so that a worker process starts without pandas.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from pathlib import Path

from spectro.addresses import FETCHERS, is_address, mark_at, place
from spectro.audio import augment, recording
from spectro.audio.augment import AugmentSettings
from spectro.errors import SpectroError
from spectro.files import MESSAGE, printable, write_bytes
from spectro.picture import png, spectrogram
from spectro.picture.spec import Image, SpectrogramSpec
from spectro.rendering.index import INDEX

IMAGES = "images"


@dataclass(frozen=True)
class Recipe:
    """How clips are rendered.

    Args:
        out: the rendering's output folder.
        spec: definition of the pictures.
        augment: how copies are altered.
        max_duration_s: recordings longer than this are failures, in seconds.
        mark: identifies pictures with these settings.
    """

    out: Path
    spec: SpectrogramSpec
    augment: AugmentSettings
    max_duration_s: float
    mark: str


@dataclass(frozen=True, slots=True)
class Job:
    """One clip, at a path or an address, and all its copies: decoded once."""

    clip_id: str
    path: str
    copies: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result for one copy: either an image or an error."""

    clip_id: str
    copy: int
    image: str = ""
    augmentation: str = ""
    parameters: str = "{}"
    content: str = ""
    error: str = ""
    reused: bool = False


def render_clips(jobs: list[Job], recipe: Recipe) -> list[list[Outcome]]:
    """Render clips, each with its copies; finished pictures are reused.

    Args:
        jobs: the clips.
        recipe: how they are rendered.

    Returns:
        for each clip, the outcomes of its untouched copy and of each other copy; for an unreadable clip, one error.
    """
    if any(is_address(job.path) for job in jobs):
        return list(_fetchers().map(_render_clip, jobs, repeat(recipe)))
    return [_render_clip(job, recipe) for job in jobs]


@cache
def _fetchers() -> ThreadPoolExecutor:
    """Return this process's threads for recordings that must be fetched; their connections are kept."""
    return ThreadPoolExecutor(FETCHERS)


def _render_clip(job: Job, recipe: Recipe) -> list[Outcome]:
    """Render one clip and its copies; finished pictures are reused."""
    try:
        identity = f"{recipe.mark}:{mark_at(place(job.path))}"
    except (OSError, ValueError):
        identity = ""  # reading the clip below reports the error
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
                break  # its other copies would fail, too
            continue
        if (recipe.out / name).exists():
            (recipe.out / INDEX).unlink(missing_ok=True)  # it describes the picture that is replaced
        write_bytes(recipe.out / name, content)
        outcomes.append(_outcome(job, copy, name, text))
    return outcomes


def _finished(path: Path, job: Job, copy: int, identity: str) -> dict[str, str] | None:
    """Return the PNG's text if it shows this copy of exactly this content, rendered with this recipe."""
    if not identity:
        return None
    text = png.read_text(path)
    expected = {"identity": identity, "clip": job.clip_id, "copy": str(copy)}
    return text if all(text.get(key) == value for key, value in expected.items()) else None


def _picture(samples: recording.Waveform, job: Job, copy: int, recipe: Recipe) -> tuple[Image, dict[str, str]]:
    """Return the pixels of a copy, and its augmentation as text for the PNG and the index."""
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
        content=text["identity"].partition(":")[2],
        reused=reused,
    )
