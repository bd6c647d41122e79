"""The checkpoint folder: `model.safetensors`, `spectro.json` and `card.md`; nothing in it is unpickled.

`spectro.json` says all that is needed to make the network again and to draw the pictures that it reads, and where it
comes from: backbone, labels in order, spec, temperature, split, metrics, package versions, licence of the data.
"""

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from spectro.errors import CheckpointError, SpectroError
from spectro.files import printable, quoted, write_bytes, write_json
from spectro.model import metadata as descriptions
from spectro.model.backbones import SpectrogramNet
from spectro.model.metadata import (
    CARD_FILE,
    DESCRIPTION_FILE,
    EXPORT_FILE,
    FORMAT,
    WEIGHTS_FILE,
    Description,
    label_problem,
)
from spectro.picture.spec import SpectrogramSpec

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "pytorch-lightning",
    "librosa",
    "soxr",
    "soundfile",
    "numpy",
    "scipy",
    "pillow",
)


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Description):
    """A network and what must be known of it.

    Args:
        net: the network, in evaluation mode; its backbone's name and number of parameters are those of the description.

    Raises:
        CheckpointError: the number of labels is not the network's number of outputs, or a label cannot be one.
    """

    net: SpectrogramNet

    def __post_init__(self) -> None:
        object.__setattr__(self, "backbone", self.net.backbone_name)
        object.__setattr__(self, "parameters", sum(parameter.numel() for parameter in self.net.parameters()))
        if len(self.labels) != self.net.classes:
            raise CheckpointError(f"{len(self.labels)} labels are given for a network with {self.net.classes} outputs")
        if problem := label_problem(self.labels):
            raise CheckpointError(problem)


def save(checkpoint: Checkpoint, folder: Path, *, dtype: Literal["float32", "float16"] = "float32") -> None:
    """Write a checkpoint folder; each file is there whole or not at all.

    Args:
        checkpoint: what to write.
        folder: where; made if it is not there.
        dtype: kind of number that weights are kept as.
    """
    net = checkpoint.net
    description = {
        "format": FORMAT,
        "backbone": checkpoint.backbone,
        "hidden": net.hidden,
        "labels": list(checkpoint.labels),
        "spec": checkpoint.spec.to_dict(),
        "normalisation": {
            "mean": _shares(net.mean),
            "std": _shares(net.std),
            **({"turned": True} if net.turned else {}),
        },
        "temperature": checkpoint.temperature,
        "dtype": dtype,
        "parameters": checkpoint.parameters,
        **({"speech": checkpoint.speech.to_dict()} if checkpoint.speech else {}),
        **checkpoint.origin,
    }
    state = {name: _cast(tensor, dtype) for name, tensor in net.state_dict().items()}
    write_bytes(folder / WEIGHTS_FILE, to_bytes(state))  # files that safetensors writes itself are 0600
    write_json(folder / DESCRIPTION_FILE, description)
    write_bytes(folder / CARD_FILE, card(description, folder.name).encode())


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        CheckpointError: the folder is missing or damaged, or its parts do not fit together; the text says which.
    """
    content = descriptions.read(folder)
    about = Description.from_dict(content, folder)
    stored = _shapes(folder)
    try:
        with torch.device("meta"):  # which has shapes and no memory: a name may stand for a network of any size
            expected = _network(about, content).state_dict()
    except (TypeError, ValueError, RuntimeError, SpectroError) as error:
        raise descriptions.misfit(folder, error) from error
    _check_shapes(folder, about, {name: tuple(tensor.shape) for name, tensor in expected.items()}, stored)
    try:
        state = load_file(folder / WEIGHTS_FILE)
        net = _network(about, content)
        net.load_state_dict({name: _cast(value, "float32") for name, value in state.items()})
        seen = content["normalisation"]
        net.set_normalisation(seen["mean"], seen["std"], turned=seen.get("turned", False))
        net.check_pictures(about.spec)
    except (OSError, ValueError, RuntimeError, SafetensorError, SpectroError) as error:
        raise descriptions.misfit(folder, error) from error
    if bad := [name for name, tensor in net.state_dict().items() if not bool(torch.isfinite(tensor).all())]:
        raise CheckpointError(
            f"{printable(folder)}: {len(bad)} of its weights hold numbers that are not finite (NaN or infinite), "
            f"such as {bad[0]}; take another checkpoint, or train it again"
        )
    net.eval().to(memory_format=torch.channels_last)
    if about.speech is not None and len(about.speech.weight) != net.features:
        raise descriptions.misfit(folder, ValueError(f"speech.weight holds no {net.features} numbers, one a feature"))
    told = {name: getattr(about, name) for name in ("labels", "spec", "temperature", "speech", "origin")}
    return Checkpoint(net=net, **told)


def _network(about: Description, content: dict[str, Any]) -> SpectrogramNet:
    return SpectrogramNet(about.backbone, len(about.labels), hidden=content["hidden"])


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a folder's weights, by name, without reading the tensors."""
    try:
        with safe_open(folder / WEIGHTS_FILE, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        if (folder / EXPORT_FILE).exists():
            raise CheckpointError(
                f"{printable(folder)}: holds an exported network, which can predict and nothing else; "
                "name the checkpoint that it was made of"
            ) from error
        raise descriptions.missing(folder, WEIGHTS_FILE) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{printable(folder)}: {WEIGHTS_FILE} cannot be read ({error}); take another checkpoint, or train it again"
        ) from error


def _check_shapes(
    folder: Path, about: Description, expected: dict[str, tuple[int, ...]], stored: dict[str, tuple[int, ...]]
) -> None:
    """Raise CheckpointError if the weights are not those of the network that the description names."""
    missing, extra = expected.keys() - stored.keys(), stored.keys() - expected.keys()
    network = f"its {quoted(about.backbone)} with {len(about.labels)} labels"
    if missing or extra:
        raise CheckpointError(
            f"{printable(folder)}: {WEIGHTS_FILE} lacks {len(missing)} and has {len(extra)} other tensors than "
            f"{network}, such as {quoted(min(missing or extra))}; take another checkpoint, or train it again"
        )
    for name, shape in expected.items():
        if stored[name] != shape:
            raise descriptions.misfit(folder, ValueError(f"{name} is {stored[name]}; of {network} it is {shape}"))


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    return {"python": platform.python_version(), "spectro": version("spectro")} | {
        package: version(package) for package in PACKAGES
    }


def card(description: dict[str, Any], name: str) -> str:
    """Return the checkpoint's card: what it is, what it was trained on, how well it does, what it is not for."""
    spec = SpectrogramSpec.from_dict(description["spec"])
    data, split, metrics = (description.get(key, {}) for key in ("data", "split", "metrics"))
    training, speakers = description.get("training", {}), split.get("speakers", {})
    epochs = f"The number of epochs, {training.get('epoch', -1) + 1}, was"
    chosen_on, fitted = f"{epochs} chosen on the validation speakers.", "fitted on speakers not heard"
    if training.get("settings", {}).get("monitor") == "last":
        chosen_on = f"{epochs} settled beforehand."
    if speakers and not speakers.get("valid"):
        chosen_on, fitted = (
            f"{epochs} settled beforehand; no speakers were held out to choose it.",
            "settled beforehand",
        )
    held = (
        f"Protocol `{split.get('protocol', 'unknown')}`, fold {split.get('fold', '?')} of {split.get('folds', '?')}\n"
        "(the first is 0), "
    )
    if speakers.get("train") and not speakers["test"]:
        held = "Nobody was held out; "
    figures = _figures(metrics, speakers, description.get("estimate", []))
    leak = f"\n**These figures leak:** {split['leak']}.\n" if split.get("leak") else ""
    weights = description.get("weights", "unknown")
    if digest := training.get("settings", {}).get("weights", "").partition(" sha256:")[2]:
        weights += f",\nSHA-256 {digest}"
    return f"""# {name}

{description["backbone"]} ({description["parameters"] / 1e6:.2f} million parameters, kept as {description["dtype"]}),
fine-tuned to tell {len(description["labels"])} labels from log-mel spectrogram pictures:
{", ".join(description["labels"])}.

## Data
{_sources(data)}
Starting weights: {weights}.

## Figures
{held}label scheme `{data.get("labels", "emotion")}`, seed {training.get("seed", "?")}.
{chosen_on}
{leak}
{figures}

{_speech(description.get("sounds"))}## What it reads
Pictures of {spec.width} x {spec.height} pixels: {spec.height} mel bands from {spec.fmin:g} to {spec.fmax:g} Hz,
{spec.duration_s:g} s at {spec.sample_rate} Hz, spec `{spec.fingerprint}`. Longer recordings show their middle,
or the part with the most speech where another part has more.
Probabilities are calibrated with the temperature {description["temperature"]:.3f}, {fitted}.

## Use and limits
For research on, and demonstrations of, speech emotion recognition, and as a start for fine-tuning on recordings of
one's own. Acted emotion is not felt emotion: the figures hold for this corpus's kind of speech, its sentences,
language and recording, and fall on others. Not for decisions about people, such as hiring, credit, policing or
health; in the European Union, emotion recognition at work and in education is prohibited with few exceptions
(Regulation 2024/1689, article 5).
"""


def _sources(data: dict[str, Any]) -> str:
    """Return what a card tells of the recordings that a network was trained on."""
    sources = data.get("sources", [])
    if len(sources) > 1:
        rows = [f"| {one['title']} | {one['licence']} | {one['homepage'] or 'none'} |" for one in sources]
        told = ["Trained on several corpora; the licence of each binds what may be done with this checkpoint too.", ""]
        told += ["| corpus | licence of the recordings | where it is described |", "| --- | --- | --- |", *rows, ""]
    else:
        told = [
            f"Trained on {data.get('title', 'unknown')} ({data.get('homepage') or 'made by this project'}).",
            f"Licence of the recordings: {data.get('licence', 'unknown')}; it binds what may be done with this "
            "checkpoint too.",
        ]
    return "\n".join([*told, *filter(None, [data.get("note", "")])])


def _speech(sounds: dict[str, Any] | None) -> str:
    """Return what a card tells of sounds in which nobody speaks."""
    if sounds is None:
        return ""
    whose = {"train": "training", "valid": "validation", "test": "test"}
    shares = ((share, whose.get(part, part)) for part, share in sounds["refused"].items())
    refused = ", ".join(f"{share:.1%} of the {part} speakers' clips" for share, part in shares)
    sources = sounds["sources"].items()
    rows = "\n".join(f"| {printable(name)} | {one['sounds']} | {one['answered']:.1%} |" for name, one in sources)
    return f"""## No speech
It says `no speech` where nobody seems to speak. It refuses so {refused}.
Of sounds without a voice this share gets an emotion all the same, each source measured without having been learnt from:

| source | sounds | answered |
| --- | --- | --- |
{rows}

"""


def _figures(metrics: dict[str, Any], speakers: dict[str, list[str]], estimate: list[dict[str, Any]]) -> str:
    """Return what a card tells of how well a network does."""
    if metrics:
        lines = [
            "This run measured the test speakers once, at its end.",
            "UAR is the mean of the recalls, WA is accuracy, F1 is macro-F1.",
            "",
            "| part | speakers | clips | UAR | WA | F1 |",
            "| --- | --- | --- | --- | --- | --- |",
            *(
                f"| {part} | {', '.join(speakers.get(part, [])) or 'none'} | {values['clips']} | "
                f"{values['uar']:.3f} | {values['wa']:.3f} | {values['f1']:.3f} |"
                for part, values in metrics.items()
            ),
        ]
        return "\n".join(lines)
    if not speakers.get("train"):
        return "No figures of it are known."
    lines = [f"All {len(speakers['train'])} speakers were trained on: no clip of theirs can measure this network."]
    if estimate:
        lines += [
            f"An estimate of what it does on new speakers are the figures of `{estimate[0]['system']}` in "
            f"{estimate[0]['table']}, networks that",
            "were trained without those that they were measured on (UAR is the mean of the recalls):",
            "",
            "| protocol | folds | seeds | runs | UAR, mean | lowest and highest run |",
            "| --- | --- | --- | --- | --- | --- |",
            *(
                f"| {one['protocol']} | {one['folds']} | {one['seeds']} | {one['runs']} | {one['uar']:.3f} | "
                f"{one['lowest']:.3f}, {one['highest']:.3f} |"
                for one in estimate
            ),
        ]
        for one in estimate:
            if by_corpus := one.get("by_corpus"):
                lines += [
                    "",
                    "What strangers may expect, corpus by corpus: the UAR there of a network that was trained by the",
                    "same recipe on all others, over the labels that both have:",
                    "",
                    "| corpus | UAR |",
                    "| --- | --- |",
                    *(f"| {printable(corpus)} | {uar:.3f} |" for corpus, uar in by_corpus.items()),
                ]
    return "\n".join(lines)


def _shares(values: torch.Tensor) -> list[float]:
    """Return a channel's statistics as shares of the gray scale."""
    return [round(float(value) / 255, 6) for value in values.flatten()]


def kept(tensor: torch.Tensor, dtype: Literal["float32", "float16"]) -> torch.Tensor:
    """Return a tensor as it will come back from a checkpoint that keeps `dtype`."""
    return _cast(_cast(tensor, dtype), "float32")


def _cast(tensor: torch.Tensor, dtype: Literal["float32", "float16"]) -> torch.Tensor:
    return tensor.to(getattr(torch, dtype)).contiguous() if tensor.is_floating_point() else tensor.contiguous()
