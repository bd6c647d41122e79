"""The HTTP service: predictions for clips and pictures, timelines of recordings, and endpoints for operators.

Two threads decode and render clips. A third runs the network on the pictures rendered meanwhile. A fourth computes
timelines, one at a time. The event loop only passes work on.
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
"""Uploads rendered at a time if no processes render them."""
LOG = logging.getLogger("uvicorn.error")
STATUS = {AudioFormatError: 415, ImageFormatError: 415, AudioLengthError: 413}
"""Status by kind of error; all others get 422."""

Recording = Annotated[UploadFile, File(description="a recording: WAV, FLAC, OGG, Opus, MP3, AIFF, ...")]
Png = Annotated[UploadFile, File(description="a PNG rendered with the checkpoint's spec")]
ModelName = Annotated[str | None, Query(description="name of a checkpoint; omit for the default", max_length=200)]
Margin = Annotated[
    float, Query(ge=0, le=1, description="answer `unsure` if the two highest probabilities are closer than this")
]
Embedding = Annotated[bool, Query(description="also return the embedding, the input of the network's last layer")]

PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "the request cannot be parsed"},
    401: {"model": Problem, "description": "no API key, or a wrong one"},
    403: {
        "model": Problem,
        "description": "the request comes from a page of another site, and the service needs no key",
    },
    404: {"model": Problem, "description": "there is no such model"},
    408: {"model": Problem, "description": "the upload arrived too slowly"},
    413: {"model": Problem, "description": "too many bytes, seconds, or samples"},
    415: {"model": Problem, "description": "not a readable recording or picture"},
    422: {
        "model": Problem,
        "description": "readable but not usable: silent, too short, rendered with another spec, ...",
    },
    421: {"model": Problem, "description": "the `Host` header is not a name of this service"},
    429: {
        "model": Problem,
        "description": "this client has too many requests in progress, or sent too many wrong keys",
    },
    500: {"model": Problem, "description": "the service failed"},
    503: {"model": Problem, "description": "the service is busy"},
}
UNEXPLAINED = {501: {"model": Problem, "description": "this model cannot be explained"}}
Second = Annotated[float | None, Query(ge=0, le=360_000, allow_inf_nan=False)]


class Service:
    """What all routes share: models, limits, metrics and threads.

    Args:
        models: the checkpoints.
        limits: what is accepted.
        metrics: counts requests and labels.
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
        """Return a model, or answer 404."""
        try:
            return await self.models.get(name)
        except KeyError:
            raise HTTPException(
                404, f"there is no model {name!r}; choose from {', '.join(self.models.names)}"
            ) from None
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
        """Render an upload, score it in a batch with others, and return the answer."""
        with _named(upload):
            picture = await asyncio.get_running_loop().run_in_executor(self._readers, render, upload.file)
        found = await model.batcher.scores(picture)
        said = verdict(model.predictor.with_margin(min_margin), found)
        self.metrics.labels.labels(said["label"]).inc()
        return PredictionAnswer(**said, embedding=found.embeddings[0].tolist() if embedding else None)

    def render(self, model: Model, source: BinaryIO) -> Image:
        """Render a recording, unless it has too many samples."""
        assert isinstance(source, InMemory)
        return self._renderers.render(source, model.predictor, self.limits)

    async def explain(self, model: Model, upload: UploadFile, *, min_margin: float, **what: Any) -> ExplanationAnswer:
        """Explain a model's prediction for an upload, or for a part of it."""
        if what["label"] not in (None, *model.predictor.labels):
            raise HTTPException(422, f"label: there is no such label; choose from {', '.join(model.predictor.labels)}")

        gone = threading.Event()
        whole = not what["start_s"] and what["end_s"] is None
        limits = self.limits
        most = (
            (limits.max_samples, limits.max_duration_s)
            if whole
            else (limits.max_timeline_samples, limits.max_timeline_s)
        )

        def work() -> ExplanationAnswer:
            check_samples(upload.file, *most)
            _ = model.predictor.torch_engine  # loaded once here, not by each copy of the predictor
            scorer = model.predictor.with_margin(min_margin)
            return explanation.answer(
                explanation.look(
                    scorer, upload.file, max_duration_s=limits.max_timeline_s, on_block=keeper(gone), **what
                )
            )

        try:
            with _named(upload):
                return await asyncio.get_running_loop().run_in_executor(self._explanations, work)
        except CheckpointError as error:
            LOG.error("the model %s cannot be explained: %s", model.name, error)
            raise HTTPException(501, f"{model.name} cannot be explained: its checkpoint is missing") from error
        except PredictionError as error:
            raise HTTPException(501, f"{model.name} cannot be explained: {error}") from error
        finally:
            gone.set()

    async def timeline(self, model: Model, upload: UploadFile, **options: Any) -> TimelineAnswer:
        """Return a timeline; stop computing it if the client disconnects."""
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
    """Name the upload in error messages, and answer with the error's status."""
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
        limits: what is accepted.
        metrics: counts requests and labels.
        keys: API keys; none for an open service.
        names: host names of the service; None for a service reachable from this machine only.
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
        description="Recognises emotion in speech from spectrogram pictures. Acted emotion is not felt emotion: do "
        "not base decisions about people on it.",
        docs_url=None,  # its page loads scripts from another host
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
        """If a recording is longer than the picture, its middle is classified, or the part with the most speech. For
        long recordings, see `/v1/timeline`."""
        chosen = await service.model(model)
        render = partial(service.render, chosen)
        return await service.predict(chosen, file, render, min_margin=min_margin, embedding=embedding)

    @app.post("/v1/predict/image", summary="Classify a rendered picture", **classify)
    async def predict_image(
        file: Png, model: ModelName = None, min_margin: Margin = 0.0, embedding: Embedding = False
    ) -> PredictionAnswer:
        """The answer is the same as for the recording from which the picture was rendered."""
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
        label: Annotated[str | None, Query(description="the label to explain; omit for the most likely one")] = None,
        start_s: Second = None,
        end_s: Second = None,
    ) -> ExplanationAnswer:
        """The answer of `/v1/predict/wav`, with the picture, a map of the evidence for a label (Grad-CAM), and axes.

        `start_s` and `end_s`, in seconds, select a part of a longer recording."""
        chosen = await service.model(model)
        return await service.explain(
            chosen, file, min_margin=min_margin, label=label, start_s=start_s or 0.0, end_s=end_s
        )

    @app.post("/v1/timeline", responses=PROBLEMS, tags=["predict"], summary="Classify a long recording over time")
    async def timeline_of(
        file: Recording,
        model: ModelName = None,
        min_margin: Margin = 0.0,
        split_channels: Annotated[bool, Query(description="analyse each channel on its own")] = False,
        hop_s: Annotated[float, Query(ge=0.1, le=60, description="distance between windows, in seconds")] = 0.5,
        smooth_s: Annotated[
            float, Query(ge=0, le=60, description="average windows closer than this, in seconds")
        ] = 2.0,
        silence_db: Annotated[
            float, Query(ge=-120, lt=0, description="sound below this level is silence, in dB of full scale")
        ] = -65.0,
    ) -> TimelineAnswer:
        """Segments of one label or of silence, from start to end, and a summary."""
        chosen = await service.model(model)
        settings = WindowSettings(hop_s=hop_s, smooth_s=smooth_s, silence_db=silence_db)
        return await service.timeline(
            chosen, file, settings=settings, min_margin=min_margin, split_channels=split_channels
        )

    @app.get(
        "/v1/model", responses={key: PROBLEMS[key] for key in (401, 404, 421, 422, 429, 500, 503)}, tags=["service"]
    )
    async def model_card(model: ModelName = None) -> ModelAnswer:
        """The model, its training data, and its results on unseen speakers."""
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

    @app.get("/healthz", tags=["service"], summary="Check that the service is alive")
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
    """Return a callback for each block of a long recording; it raises PredictionError once the client is gone."""

    def keep_on() -> None:
        if gone.is_set():
            raise PredictionError("the client disconnected")

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
