"""The checkpoint folder: `model.safetensors`, `spectro.json` and `card.md`. Nothing in it is unpickled."""

import platform
from collections.abc import Container
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from spectro.errors import CheckpointError, SpectroError
from spectro.files import printable, quoted, write_bytes, write_json
from spectro.model import metadata as descriptions
from spectro.model.backbones import SpectrogramNet
from spectro.model.card import card
from spectro.model.metadata import (
    CARD_FILE,
    DESCRIPTION_FILE,
    EXPORT_FILE,
    WEIGHTS_FILE,
    Description,
    Dtype,
    Normalisation,
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
class Checkpoint:
    """A network and its description.

    Args:
        net: the network, in evaluation mode.
        about: its description.
    """

    net: SpectrogramNet
    about: Description

    @classmethod
    def of(cls, net: SpectrogramNet, *, labels: tuple[str, ...], spec: SpectrogramSpec, **origin: Any) -> Self:
        """Make a checkpoint of a network.

        Args:
            net: the network, in evaluation mode.
            labels: labels, in the order of its outputs.
            spec: spec of its input pictures.
            **origin: further fields of `Description`, such as `temperature`, `split` or `metrics`.

        Raises:
            CheckpointError: the number of labels is not the network's number of outputs, or a label is not allowed.
        """
        if len(labels) != net.classes:
            raise CheckpointError(f"{len(labels)} labels are given for a network with {net.classes} outputs")
        try:
            about = Description(
                backbone=net.backbone_name,
                hidden=net.hidden,
                labels=labels,
                spec=spec,
                normalisation=Normalisation(mean=_shares(net.mean), std=_shares(net.std), turned=net.turned),
                parameters=_parameters(net),
                **{"temperature": 1.0, **origin},
            )
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        return cls(net=net, about=about)


def save(checkpoint: Checkpoint, folder: Path, *, dtype: Dtype = "float32") -> None:
    """Write a checkpoint folder. An earlier checkpoint in it is first taken apart, so that the two are never mixed.

    Args:
        checkpoint: the checkpoint.
        folder: its folder; created if it does not exist.
        dtype: number format of the stored weights.
    """
    about = msgspec.structs.replace(checkpoint.about, dtype=dtype)
    state = _stored(checkpoint.net, dtype)
    (folder / DESCRIPTION_FILE).unlink(missing_ok=True)
    write_bytes(folder / WEIGHTS_FILE, to_bytes(state))  # safetensors would write the file with mode 0600
    write_json(folder / DESCRIPTION_FILE, about.to_dict())
    write_bytes(folder / CARD_FILE, card(about, folder.name).encode())


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        CheckpointError: the folder is missing or damaged, or its parts do not fit together; the text names them.
    """
    about = Description.read(folder)
    stored = _shapes(folder)
    try:
        with torch.device("meta"):  # shapes without memory: the named network may be of any size
            expected = _network(about, stored).state_dict()
    except (TypeError, ValueError, RuntimeError, SpectroError) as error:
        raise descriptions.misfit(folder, error) from error
    _check_shapes(folder, about, {name: tuple(tensor.shape) for name, tensor in expected.items()}, stored)
    try:
        state = load_file(folder / WEIGHTS_FILE)
        net = _network(about, stored)
        net.load_state_dict({name: _cast(value, "float32") for name, value in state.items()})
        net.set_normalisation(about.normalisation.mean, about.normalisation.std, turned=about.normalisation.turned)
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
        raise descriptions.misfit(
            folder, ValueError(f"speech.weight does not hold {net.features} numbers, one per feature")
        )
    return Checkpoint(net=net, about=msgspec.structs.replace(about, parameters=_parameters(net)))


def _parameters(net: SpectrogramNet) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _network(about: Description, stored: Container[str]) -> SpectrogramNet:
    """Return the network of a description, with a norm of its features if that is among the stored tensors."""
    net = SpectrogramNet(about.backbone, len(about.labels), hidden=about.hidden)
    if "feature_norm.scale" in stored:
        net.add_feature_norm()
    return net


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a folder's weights, by name, without reading the tensors."""
    try:
        with safe_open(folder / WEIGHTS_FILE, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        if (folder / EXPORT_FILE).exists():
            raise CheckpointError(
                f"{printable(folder)}: holds an exported network, which can only predict; "
                "name the checkpoint that it was exported from"
            ) from error
        raise descriptions.missing(folder, WEIGHTS_FILE) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{printable(folder)}: {WEIGHTS_FILE} cannot be read ({error}); take another checkpoint, or train it again"
        ) from error


def _check_shapes(
    folder: Path, about: Description, expected: dict[str, tuple[int, ...]], stored: dict[str, tuple[int, ...]]
) -> None:
    """Raise CheckpointError if the weights do not fit the network that the description names."""
    missing, extra = expected.keys() - stored.keys(), stored.keys() - expected.keys()
    network = f"its {quoted(about.backbone)} with {len(about.labels)} labels"
    if missing or extra:
        raise CheckpointError(
            f"{printable(folder)}: {WEIGHTS_FILE} does not fit {network}: {len(missing)} tensors are missing, "
            f"{len(extra)} unknown, such as {quoted(min(missing or extra))}; take another checkpoint, or train it again"
        )
    for name, shape in expected.items():
        if stored[name] != shape:
            raise descriptions.misfit(folder, ValueError(f"{name} is {stored[name]}; in {network} it is {shape}"))


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    return {"python": platform.python_version(), "spectro": version("spectro")} | {
        package: version(package) for package in PACKAGES
    }


def _shares(values: torch.Tensor) -> tuple[float, ...]:
    """Return a channel's statistics as shares of the gray scale."""
    return tuple(round(float(value) / 255, 6) for value in values.flatten())


def kept(net: SpectrogramNet, dtype: Dtype) -> dict[str, torch.Tensor]:
    """Return the tensors of a network as they are after storing it in `dtype` and loading it again."""
    return {name: _cast(tensor, "float32") for name, tensor in _stored(net, dtype).items()}


def _stored(net: SpectrogramNet, dtype: Dtype) -> dict[str, torch.Tensor]:
    """Return the tensors of a network in `dtype`, but the norm of its features in float32, so that it has no effect."""
    return {
        name: _cast(tensor, "float32" if name.startswith("feature_norm.") else dtype)
        for name, tensor in net.state_dict().items()
    }


def _cast(tensor: torch.Tensor, dtype: Dtype) -> torch.Tensor:
    return tensor.to(getattr(torch, dtype)).contiguous() if tensor.is_floating_point() else tensor.contiguous()
