"""Explain a prediction: a map of the parts of a picture that led to it.

The map is Grad-CAM (R. R. Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization, ICCV 2017), computed with captum on the last layer whose output still has time and frequency.
"""

import io
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from captum.attr import LayerAttribution, LayerGradCam
from matplotlib.figure import Figure
from torch import nn

from spectro.addresses import place
from spectro.audio.source import readable
from spectro.engines.base import batch
from spectro.errors import PredictionError
from spectro.model.backbones import SpectrogramNet
from spectro.picture import png, spectrogram
from spectro.picture.frontend import band_of
from spectro.picture.spec import Image, SpectrogramSpec
from spectro.predict.predictor import Prediction, Predictor, Source

Heat = npt.NDArray[np.float32]

FREQUENCIES = (100, 250, 500, 1000, 2000, 4000, 8000)


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Which parts of a picture support a label.

    Args:
        prediction: the prediction for the picture.
        label: the label that the map explains.
        picture: uint8 of shape `spec.shape`, the picture.
        heat: float32 of shape (height, width), 0 to 1: how much each point supports the label, relative to the point
            that supports it most; all 0 if none does. Row 0 is the highest band, as in the picture.
        spec: the picture's spec.
        start_s: time of the picture's first column in the recording, in seconds; may be before its start.
    """

    prediction: Prediction
    label: str
    picture: Image
    heat: Heat = field(repr=False)
    spec: SpectrogramSpec
    start_s: float


def explain(predictor: Predictor, source: Source, *, label: str | None = None) -> Explanation:
    """Explain the prediction for a recording, or for a rendered picture (a path that ends with .png).

    Args:
        predictor: the predictor to explain.
        source: a path, an address, or a seekable binary file with a recording.
        label: the label to explain; None for the most likely one.

    Raises:
        AudioError, ImageError: the recording or picture cannot be used.
        PredictionError: there is no such label, or the backbone has no map of time and frequency.
    """
    spec = predictor.checkpoint.spec
    if isinstance(source, str | os.PathLike) and Path(source).suffix.lower() == ".png":
        with readable(place(source)) as file:
            return explain_picture(predictor, png.read(file, spec).pixels, label=label)
    samples, trimmed = spectrogram.read_from(source, spec, max_duration_s=predictor.max_duration_s)
    first = spectrogram.first_column(*spectrogram.shown(samples, spec), spec)
    picture = spectrogram.render(samples, spec)
    return explain_picture(predictor, picture, label=label, start_s=(trimmed + first) / spec.sample_rate)


def explain_picture(
    predictor: Predictor, picture: Image, *, label: str | None = None, start_s: float = 0.0
) -> Explanation:
    """Explain the prediction for a picture.

    Args:
        predictor: the predictor to explain.
        picture: uint8 of shape `checkpoint.spec.shape`.
        label: the label to explain; None for the most likely one.
        start_s: time of the picture's first column, in seconds.

    Raises:
        PredictionError: there is no such label, or the backbone has no map of time and frequency.
    """
    if label is not None and label not in predictor.labels:
        raise PredictionError(f"there is no label {label!r}; the checkpoint has {', '.join(predictor.labels)}")
    prediction = predictor.predict_pixels([picture])[0]
    likely = max(prediction.probabilities, key=prediction.probabilities.__getitem__)
    about = label or likely
    return Explanation(
        prediction=prediction,
        label=about,
        picture=picture,
        heat=_heat(predictor, picture, predictor.labels.index(about)),
        spec=predictor.checkpoint.spec,
        start_s=start_s,
    )


def moved(explanation: Explanation, start_s: float) -> Explanation:
    """Return an explanation of a part of a recording, with the times of the whole recording.

    Args:
        explanation: explanation of the part.
        start_s: start of the part, in seconds.
    """
    return replace(explanation, start_s=explanation.start_s + start_s)


def plot(explanation: Explanation, *, title: str = "", width_in: float = 7.5, height_in: float = 3.6) -> bytes:
    """Plot the map over the spectrogram, with axes in seconds and hertz; returns the bytes of a PNG.

    Args:
        explanation: explanation to plot.
        title: title of the plot, before the label.
        width_in: width, in inches of 120 pixels.
        height_in: height, in inches of 120 pixels.
    """
    spec = explanation.spec
    step = spec.hop_length / spec.sample_rate
    left = explanation.start_s - step / 2
    extent = (left, left + spec.width * step, -0.5, spec.height - 0.5)
    figure = Figure(figsize=(width_in, height_in), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(explanation.picture, cmap="gray", vmin=0, vmax=255, extent=extent, aspect="auto")
    shown = axes.imshow(
        explanation.heat,
        cmap="inferno",
        vmin=0,
        vmax=1,
        alpha=0.65 * explanation.heat**0.5,
        extent=extent,
        aspect="auto",
        interpolation="bilinear",
    )
    ticks = [frequency for frequency in FREQUENCIES if spec.fmin < frequency <= spec.fmax]
    axes.set_yticks([band_of(frequency, spec) for frequency in ticks], [f"{one:,}" for one in ticks])
    axes.set_ylim(-0.5, spec.height - 0.5)
    axes.set_xlabel("time (s)")
    axes.set_ylabel("frequency (Hz)")
    chance = explanation.prediction.probabilities[explanation.label]
    axes.set_title(f"{title + ': ' if title else ''}evidence for {explanation.label} ({chance:.2f})", parse_math=False)
    figure.colorbar(shown, ax=axes, label="Grad-CAM", fraction=0.04, pad=0.02)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _heat(predictor: Predictor, picture: Image, target: int) -> Heat:
    engine = predictor.torch_engine
    net, pictures = engine.net, engine.tensor(batch([picture]))
    with engine.lock, torch.enable_grad():
        attribution = LayerGradCam(net, _last_map(net, pictures)).attribute(
            pictures.float(), target=target, relu_attributions=True
        )
    height, width = predictor.checkpoint.spec.height, predictor.checkpoint.spec.width
    values = LayerAttribution.interpolate(attribution.detach().float(), (height, width), "bilinear")[0, 0].cpu()
    if net.turned:
        values = values.flip(0)
    heat: Heat = (values / values.max().clamp(min=1e-12)).numpy()
    return heat


def _last_map(net: SpectrogramNet, pictures: torch.Tensor) -> nn.Module:
    """Return the last module to run whose output has positions; it must be a map of the features.

    Raises:
        PredictionError: the positions are those of tokens, or of a map whose channels come last.
    """
    last: list[tuple[nn.Module, torch.Size]] = []

    def watch(module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.ndim in (3, 4) and output.shape[2:].numel() > 1:
            last[:] = [(module, output.shape)]

    hooks = [module.register_forward_hook(watch) for module in net.backbone.modules() if module is not net.backbone]
    try:
        with torch.inference_mode():
            net(pictures)
    finally:
        for hook in hooks:
            hook.remove()
    if not last or len(last[0][1]) != 4 or last[0][1][1] != net.backbone.num_features:
        raise PredictionError(
            f"{net.backbone_name} has no map of time and frequency to explain; use a convolutional backbone"
        )
    return last[0][0]
