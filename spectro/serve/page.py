"""The web page: drop a file or speak, and see what is heard, why, and when. Gradio, on the service's own application.

Nothing on it comes from another host, and a policy in its answers keeps browsers from asking one.
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
import numpy as np
import pandas as pd
import PIL.Image
import soundfile
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spectro.errors import SpectroError
from spectro.predict import explain
from spectro.predict.predictor import Predictor
from spectro.predict.summary import Summary
from spectro.predict.windows import Segment, timeline
from spectro.serve.guard import Limits
from spectro.serve.models import Models
from spectro.serve.strip import bars, strip
from spectro.signal import audio, container

HERE = Path(__file__).parent
PROGRESS = gr.Progress()
SEVERAL_PICTURES = 1.5  # a recording this many pictures long has a course
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; frame-ancestors 'self'"
)
KEPT_S = 3600
INTRODUCTION = """# spectro
What is heard in a voice: drop a recording, or speak. Acted emotion is not felt emotion, and this is
**not for decisions about people**. Uploads are deleted after an hour."""


@dataclass(frozen=True)
class Finding:
    """What the page shows of a recording.

    Args:
        verdict: HTML, the label and its bars, or what is wrong.
        picture: the spectrogram with the explanation over it, a file's path; None where something is wrong.
        course: HTML, the timeline; empty for a clip.
        table: the timeline's rows, or the clip's; None where something is wrong.
        download: the table as a CSV file's path; None where something is wrong.
    """

    verdict: str
    picture: Any = None
    course: str = ""
    table: pd.DataFrame | None = None
    download: str | None = None


def add_page(app: FastAPI, models: Models, limits: Limits, *, keys: tuple[str, ...] = ()) -> "PageApp":
    """Return the application with the page at `/`.

    Args:
        app: the service.
        models: the checkpoints that can be chosen.
        limits: what is taken.
        keys: passwords of the user `spectro`; none for an open page.
    """
    blocks = _blocks(models, limits).queue(max_size=limits.max_pending)
    blocks.has_launched = True  # without it, gradio does not check that the paths which browsers send are uploads
    mounted = gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        auth=[("spectro", key) for key in keys] or None,
        auth_message="User spectro, and an API key as the password.",
        footer_links=[],
        max_file_size=int(limits.max_timeline_mb * 2**20),
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css_paths=HERE / "page.css",
        head=f"<script>{(HERE / 'page.js').read_text()}</script>",
        ssr_mode=False,
        run_history=False,
        show_error=False,
    )
    return PageApp(
        mounted, [route.app for route in mounted.routes if hasattr(getattr(route, "app", None), "stop_event")]
    )


class PageApp:
    """The service with the page; tells browsers to ask no other host for anything.

    Args:
        app: who answers.
        pages: gradio's own applications in it.
    """

    def __init__(self, app: ASGIApp, pages: Sequence[Any]) -> None:
        self._app, self._pages = app, pages

    def stop(self) -> None:
        """End the streams that open pages keep, which would hold up the service's end."""
        for page in self._pages:
            page.stop_event.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["Referrer-Policy"] = "same-origin"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        if "file=http" in scope.get("path", ""):  # gradio would fetch it
            await PlainTextResponse("not found", 404)(scope, receive, send)
            return
        await self._app(scope, receive, marked)


def _blocks(models: Models, limits: Limits) -> Any:
    with gr.Blocks(title="spectro", analytics_enabled=False, delete_cache=(KEPT_S // 4, KEPT_S)) as blocks:
        gr.Markdown(INTRODUCTION)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                recording = gr.Audio(
                    sources=["upload", "microphone"],
                    type="filepath",
                    label="Recording",
                    elem_id="recording",
                    buttons=["download"],
                )
                checkpoint = gr.Dropdown(models.names, value=models.default.name, label="Checkpoint")
                start = gr.Button("Recognise", variant="primary")
            with gr.Column(scale=3, min_width=300):
                verdict = gr.HTML(elem_id="verdict")
        picture = gr.Image(
            label="Spectrogram, and what in it speaks for the label",
            show_label=False,
            elem_id="picture",
            visible=False,
            buttons=[],
        )
        course = gr.HTML(elem_id="course")
        table = gr.Dataframe(label="Table", interactive=False, visible=False, elem_id="table", max_height=320)
        download = gr.DownloadButton("Download the table (CSV)", visible=False)

        async def show(path: str | None, name: str, progress: gr.Progress = PROGRESS) -> list[Any]:
            if not path:
                return _shown(Finding(_alert("Drop a recording first, or speak.")))
            try:
                model = await models.get(name)
                found = await asyncio.to_thread(look, model.predictor, Path(path), limits.max_timeline_s, progress)
            except SpectroError as error:
                found = Finding(_alert(str(error).replace(path, Path(path).name)))
            return _shown(found)

        def _shown(found: Finding) -> list[Any]:
            there = found.table is not None
            return [
                found.verdict,
                gr.Image(found.picture, visible=there),
                found.course,
                gr.Dataframe(found.table, visible=there),
                gr.DownloadButton(value=found.download, visible=there),
            ]

        for event in (start.click, recording.upload, recording.stop_recording):
            event(
                show,
                [recording, checkpoint],
                [verdict, picture, course, table, download],
                api_visibility="private",
                concurrency_limit=2,
                concurrency_id="look",
            )
    return blocks


def look(predictor: Predictor, path: Path, max_duration_s: float, progress: Any = None) -> Finding:
    """Look at a recording: a clip whole, a longer one in its course.

    Args:
        predictor: the network.
        path: the recording.
        max_duration_s: longest recording accepted, in seconds.
        progress: is told the share that is done and what is being done; None for nobody.

    Raises:
        SpectroError: the recording cannot be used.
    """
    length = audio.duration_s(path)
    if length > SEVERAL_PICTURES * predictor.checkpoint.spec.duration_s:
        return _look_at_course(predictor, path, length, max_duration_s, progress)
    found = explain.explain(predictor, path)
    said = found.prediction
    row = {"label": said.label, "confidence": said.confidence, **said.probabilities}
    return Finding(
        verdict=bars(said.label, said.probabilities, predictor.labels),
        picture=_picture(found),
        **_table(pd.DataFrame([row]), path),
    )


def _look_at_course(predictor: Predictor, path: Path, length: float, max_duration_s: float, progress: Any) -> Finding:
    segments: list[Segment] = []
    summary = Summary(path.name)
    for segment in timeline(predictor, path, max_duration_s=max_duration_s):
        segments.append(segment)
        summary.add(segment)
        if progress is not None:
            progress(min(1.0, segment.end_s / length), desc="listening")
    content = summary.content()
    if not content["strongest"]:
        return Finding(_alert(f"{path.name}: nothing but silence was heard."))
    strongest = content["strongest"][0]
    middle_s, half_s = (strongest["start_s"] + strongest["end_s"]) / 2, predictor.checkpoint.spec.duration_s / 2
    start_s, end_s = max(strongest["start_s"], middle_s - half_s), min(strongest["end_s"], middle_s + half_s)
    found = explain.moved(explain.explain(predictor, _part(path, start_s, end_s)), start_s)
    columns = [segment.record(predictor.labels) for segment in segments]
    frame = pd.DataFrame(columns).drop(columns=["path", "channel", "error"])
    return Finding(
        verdict=bars("Share of the time with sound", content["shares"], predictor.labels),
        picture=_picture(found),
        course=strip(segments, predictor.labels, f"gradio_api/file={path}"),
        **_table(frame, path),
    )


def _part(path: Path, start_s: float, end_s: float) -> BytesIO:
    """Return a part of a recording as a recording."""
    with container.opened(path, max_duration_s=None) as file:
        file.seek(round(start_s * file.samplerate))
        samples = audio.read_block(file, round((end_s - start_s) * file.samplerate))
        rate = file.samplerate
    part = BytesIO()
    soundfile.write(part, samples, rate, format="WAV", subtype="FLOAT")
    part.seek(0)
    return part


def _picture(found: explain.Explanation) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(PIL.Image.open(BytesIO(explain.draw(found, width_in=6, height_in=3.4))).convert("RGB"))


def _table(frame: pd.DataFrame, path: Path) -> dict[str, Any]:
    """Return the table, rounded, and as a file to download, which lies beside the upload and goes when it goes."""
    rounded = frame.round(3)
    place = path.with_name(f"{path.stem}-emotions.csv")
    rounded.to_csv(place, index=False)
    return {"table": rounded, "download": str(place)}


def _alert(sentence: str) -> str:
    return f'<p class="spectro-alert" role="alert">{escape(sentence)}</p>'
