"""The HTTP service: predictions of clips and pictures, timelines of recordings, and what operators need to see.

Clips are decoded and drawn by two threads, the network runs in a third on whatever has been drawn meanwhile, and
timelines are made one at a time by a fourth; the event loop does nothing but pass things on.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Annotated, Any, BinaryIO

from fastapi import FastAPI, File, HTTPException, Query, Response, UploadFile
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

import spectro
from spectro.audio.source import name_of
from spectro.errors import (
    AudioError,
    AudioFormatError,
    AudioLengthError,
    CheckpointError,
    ImageError,
    ImageFormatError,
    PredictionError,
    SpectroError,
)
from spectro.picture import png
from spectro.picture.spec import Image
from spectro.predict.results import verdict
from spectro.predict.timeline.formats import Summary
from spectro.predict.timeline.segments import Segment, timeline
from spectro.predict.timeline.windows import WindowSettings
from spectro.serve import explanation
from spectro.serve.callers import Names
from spectro.serve.guard import Guard
from spectro.serve.limits import Limits
from spectro.serve.metrics import Counting, Metrics
from spectro.serve.models import Model, Models
from spectro.serve.renderers import Renderers, check_samples
from spectro.serve.schemas import (
    ExplanationAnswer,
    HealthAnswer,
    ModelAnswer,
    PredictionAnswer,
    Problem,
    SegmentAnswer,
    SummaryAnswer,
    TimelineAnswer,
)
from spectro.serve.turns import FairThreads
from spectro.serve.upload import InMemory, UploadRoute
from spectro.serve.words import add_words, said

READERS = 2
"""Uploads that are drawn at a time, where no process does it."""
LOG = logging.getLogger("uvicorn.error")
STATUS = {AudioFormatError: 415, ImageFormatError: 415, AudioLengthError: 413}
"""Status of errors that are not the content's fault to be understood (422)."""

Recording = Annotated[UploadFile, File(description="a recording: WAV, FLAC, OGG, Opus, MP3, AIFF, ...")]
Png = Annotated[UploadFile, File(description="a PNG that was rendered by the checkpoint's spec")]
ModelName = Annotated[str | None, Query(description="name of a checkpoint; the default without it", max_length=200)]
Margin = Annotated[
    float, Query(ge=0, le=1, description="`unsure` where the two most likely probabilities are nearer than this")
]
Embedding = Annotated[bool, Query(description="also return what the network's last layer reads")]

PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "the request cannot be parsed"},
    401: {"model": Problem, "description": "no API key, or a wrong one"},
    403: {"model": Problem, "description": "a page of another site asks, and no key is needed"},
    404: {"model": Problem, "description": "there is no such model"},
    408: {"model": Problem, "description": "the upload came too slowly"},
    413: {"model": Problem, "description": "too many bytes, seconds, or samples"},
    415: {"model": Problem, "description": "not a recording, or not a picture, that can be read"},
    422: {"model": Problem, "description": "it can be read but not used: silent, too short, drawn otherwise, ..."},
    421: {"model": Problem, "description": "the service is not called so"},
    429: {"model": Problem, "description": "this client has too many requests at a time, or has guessed keys"},
    500: {"model": Problem, "description": "the service failed"},
    503: {"model": Problem, "description": "the service is busy"},
}
UNEXPLAINED = {501: {"model": Problem, "description": "this model cannot be explained"}}
Second = Annotated[float | None, Query(ge=0, le=360_000, allow_inf_nan=False)]


class Service:
    """What the routes work with.

    Args:
        models: the checkpoints.
        limits: what is taken.
        metrics: where it is counted.
        renderers: processes that render uploads; 0 for threads.
    """

    def __init__(self, models: Models, limits: Limits, metrics: Metrics, renderers: int = 0) -> None:
        self.models, self.limits, self.metrics = models, limits, metrics
        self._renderers = Renderers(renderers)
        self._readers = FairThreads(max(READERS, renderers + 1), "reading")
        self._explanations = FairThreads(1, "explaining")
        self._timelines = FairThreads(1, "timelines")

    async def close(self) -> None:
        """Stop the threads."""
        await self.models.close()
        self._readers.shutdown()
        self._renderers.shutdown()
        self._explanations.shutdown()
        self._timelines.shutdown()

    async def model(self, name: str | None) -> Model:
        """Return a model, or refuse with 404."""
        try:
            return await self.models.get(name)
        except KeyError:
            raise HTTPException(404, f"there is no model {name!r}; there are {', '.join(self.models.names)}") from None
        except SpectroError as error:
            LOG.error("the model %s cannot be loaded: %s", name, error)
            raise HTTPException(503, f"the model {name!r} cannot be loaded; the service's log says why") from error

    async def predict(
        self,
        model: Model,
        upload: UploadFile,
        render: Callable[[BinaryIO], Image],
        *,
        min_margin: float,
        embedding: bool,
    ) -> PredictionAnswer:
        """Draw an upload, score it among others, and answer."""
        with _named(upload):
            picture = await asyncio.get_running_loop().run_in_executor(self._readers, render, upload.file)
        found = await model.batcher.scores(picture)
        said = verdict(model.predictor.with_margin(min_margin), found)
        self.metrics.labels.labels(said["label"]).inc()
        return PredictionAnswer(**said, embedding=found.embeddings[0].tolist() if embedding else None)

    def render(self, model: Model, source: BinaryIO) -> Image:
        """Draw a recording, if it does not hold too many samples."""
        assert isinstance(source, InMemory)
        return self._renderers.render(source, model.predictor, self.limits)

    async def explain(self, model: Model, upload: UploadFile, *, min_margin: float, **what: Any) -> ExplanationAnswer:
        """Explain what a model makes of an upload, or of a stretch of it."""
        if what["label"] not in (None, *model.predictor.labels):
            raise HTTPException(422, f"label: there is none such; there are {', '.join(model.predictor.labels)}")

        gone = threading.Event()
        whole = not what["start_s"] and what["end_s"] is None
        most = self.limits.max_samples if whole else self.limits.max_timeline_samples

        def work() -> ExplanationAnswer:
            check_samples(upload.file, most, self.limits.max_timeline_s)
            _ = model.predictor.torch_engine  # loaded here once, not by each copy of the predictor
            scorer = model.predictor.with_margin(min_margin)
            return explanation.answer(
                explanation.look(
                    scorer, upload.file, max_duration_s=self.limits.max_timeline_s, on_block=keeper(gone), **what
                )
            )

        try:
            with _named(upload):
                return await asyncio.get_running_loop().run_in_executor(self._explanations, work)
        except CheckpointError as error:
            LOG.error("the model %s cannot be explained: %s", model.name, error)
            raise HTTPException(501, f"{model.name} cannot be explained: its checkpoint is not here") from error
        except PredictionError as error:
            raise HTTPException(501, f"{model.name} cannot be explained: {error}") from error
        finally:
            gone.set()

    async def timeline(self, model: Model, upload: UploadFile, **options: Any) -> TimelineAnswer:
        """Make a timeline; it is given up when nobody waits for it any more."""
        gone = threading.Event()

        def work() -> TimelineAnswer:
            check_samples(upload.file, self.limits.max_timeline_samples, self.limits.max_timeline_s)
            return _timeline(model, upload, gone, self.limits.max_timeline_s, **options)

        try:
            with _named(upload):
                return await asyncio.get_running_loop().run_in_executor(self._timelines, work)
        finally:
            gone.set()


@contextmanager
def _named(upload: UploadFile) -> Iterator[None]:
    """Call the recording by the upload's name in what is raised, and answer with the error's status."""
    try:
        yield
    except (AudioError, ImageError) as error:
        reason = str(error).removeprefix(f"{name_of(upload.file)}: ").removeprefix("image: ")
        status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 422)
        raise HTTPException(status, f"{_name(upload)}: {reason}") from error


def make_app(
    models: Models,
    limits: Limits,
    metrics: Metrics,
    *,
    keys: tuple[str, ...] = (),
    names: Names | None = None,
    renderers: int = 0,
) -> FastAPI:
    """Return the application.

    Args:
        models: the checkpoints.
        limits: what is taken.
        metrics: where it is counted.
        keys: API keys; none for an open service.
        names: what the service is called; None for a service on this machine alone.
        renderers: processes that render uploads; 0 for threads.
    """
    service = Service(models, limits, metrics, renderers)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = FastAPI(
        title="spectro",
        version=spectro.__version__,
        description="Emotion in speech, recognised by looking at it. Acted emotion is not felt emotion: not for "
        "decisions about people.",
        docs_url=None,  # its page would load scripts from another host
        redoc_url=None,
        lifespan=lifespan,
    )

    app.router.route_class = UploadRoute
    add_words(app)
    classify: dict[str, Any] = {"responses": PROBLEMS, "tags": ["predict"], "response_model_exclude_none": True}

    @app.post("/v1/predict/wav", summary="Classify a recording", **classify)
    async def predict_wav(
        file: Recording, model: ModelName = None, min_margin: Margin = 0.0, embedding: Embedding = False
    ) -> PredictionAnswer:
        """A recording longer than the picture is judged by its middle, or by the part with the most speech; see
        `/v1/timeline` for longer ones."""
        chosen = await service.model(model)
        render = partial(service.render, chosen)
        return await service.predict(chosen, file, render, min_margin=min_margin, embedding=embedding)

    @app.post("/v1/predict/image", summary="Classify a rendered picture", **classify)
    async def predict_image(
        file: Png, model: ModelName = None, min_margin: Margin = 0.0, embedding: Embedding = False
    ) -> PredictionAnswer:
        """The answer is the one that the recording would get that the picture was rendered from."""
        chosen = await service.model(model)

        def render(source: BinaryIO) -> Image:
            return png.read(source, chosen.predictor.checkpoint.spec).pixels

        return await service.predict(chosen, file, render, min_margin=min_margin, embedding=embedding)

    @app.post(
        "/v1/explain", **(classify | {"responses": PROBLEMS | UNEXPLAINED}), summary="Explain a recording's label"
    )
    async def explain(
        file: Recording,
        model: ModelName = None,
        min_margin: Margin = 0.0,
        label: Annotated[str | None, Query(description="the label to explain; the most likely without it")] = None,
        start_s: Second = None,
        end_s: Second = None,
    ) -> ExplanationAnswer:
        """The answer of `/v1/predict/wav`, with the picture, places that speak for a label (Grad-CAM), and axes.

        `start_s` and `end_s`, in seconds, choose a stretch of a longer recording."""
        chosen = await service.model(model)
        return await service.explain(
            chosen, file, min_margin=min_margin, label=label, start_s=start_s or 0.0, end_s=end_s
        )

    @app.post("/v1/timeline", responses=PROBLEMS, tags=["predict"], summary="What is heard in a long recording")
    async def timeline_of(
        file: Recording,
        model: ModelName = None,
        min_margin: Margin = 0.0,
        split_channels: Annotated[bool, Query(description="each channel is a party of its own")] = False,
        hop_s: Annotated[float, Query(ge=0.1, le=60, description="distance between windows, in seconds")] = 0.5,
        smooth_s: Annotated[float, Query(ge=0, le=60, description="how far windows are averaged, in seconds")] = 2.0,
        silence_db: Annotated[float, Query(ge=-120, lt=0, description="silence, in dB of full scale")] = -65.0,
    ) -> TimelineAnswer:
        """Stretches of one emotion or of silence, from begin to end, and a summary."""
        chosen = await service.model(model)
        settings = WindowSettings(hop_s=hop_s, smooth_s=smooth_s, silence_db=silence_db)
        return await service.timeline(
            chosen, file, settings=settings, min_margin=min_margin, split_channels=split_channels
        )

    @app.get(
        "/v1/model", responses={key: PROBLEMS[key] for key in (401, 404, 421, 422, 429, 500, 503)}, tags=["service"]
    )
    async def model_card(model: ModelName = None) -> ModelAnswer:
        """What answers, what it was trained on, and how well it does on speakers that it has never heard."""
        chosen = await service.model(model)
        checkpoint = chosen.predictor.checkpoint
        return ModelAnswer(
            name=chosen.name,
            models=service.models.names,
            backbone=checkpoint.backbone,
            engine=chosen.predictor.engine.name,
            labels=list(checkpoint.labels),
            duration_s=checkpoint.spec.duration_s,
            temperature=checkpoint.temperature,
            spec=checkpoint.spec.to_dict(),
            spec_fingerprint=checkpoint.spec.fingerprint,
            origin=checkpoint.origin,
            version=spectro.__version__,
        )

    @app.get("/healthz", tags=["service"], summary="Is it alive")
    async def healthz() -> HealthAnswer:
        return HealthAnswer(status="ok")

    @app.get(
        "/metrics",
        tags=["service"],
        summary="Counts for Prometheus",
        response_class=PlainTextResponse,
        responses={401: PROBLEMS[401]},
    )
    async def metrics_page() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    known = frozenset(app.openapi()["paths"])
    app.add_middleware(Guard, limits=limits, keys=keys, names=names)
    app.add_middleware(Counting, metrics=metrics, known=known)
    return app


def keeper(gone: threading.Event) -> Callable[[], None]:
    """Return what is called between two blocks of a long recording: it ends the work of a client who has gone."""

    def keep_on() -> None:
        if gone.is_set():
            raise PredictionError("the client has gone")

    return keep_on


def _timeline(
    model: Model,
    upload: UploadFile,
    gone: threading.Event,
    max_duration_s: float,
    *,
    settings: WindowSettings,
    min_margin: float,
    split_channels: bool,
) -> TimelineAnswer:
    scorer = model.predictor.with_margin(min_margin)
    summary = Summary(_name(upload))
    segments: list[SegmentAnswer] = []
    found = timeline(
        scorer,
        upload.file,
        settings,
        split_channels=split_channels,
        max_duration_s=max_duration_s,
        on_block=keeper(gone),
    )
    for segment in found:
        summary.add(segment)
        segments.append(_segment(segment))
    return TimelineAnswer(segments=segments, summary=SummaryAnswer(**summary.content()))


def _segment(segment: Segment) -> SegmentAnswer:
    names = ("start_s", "end_s", "label", "confidence", "channel", "probabilities", "speech")
    return SegmentAnswer(**{name: getattr(segment, name) for name in names})


def _name(upload: UploadFile) -> str:
    return said(upload.filename or "upload")
