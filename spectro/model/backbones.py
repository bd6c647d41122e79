"""Networks that read pictures: construction, starting weights, and division into layers for training.

ImageNet networks, their input normalisation and their published weights are timm's. `mobilenet`, `vgg16`, `vgg19` and
`inceptionv3` are short names; any other timm name works, and so do the names of `sequence`, `sound` and `whisper`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import group_parameters
from torch import nn

from spectro.errors import TrainingError, WeightsError
from spectro.model import convert, metadata, sequence, sound, whisper
from spectro.model.batch_norms import FeatureNorm
from spectro.model.metadata import DESCRIPTION_FILE, WEIGHTS_FILE
from spectro.model.pretrained import PRETRAINED
from spectro.picture.spec import SpectrogramSpec

StateDict: TypeAlias = dict[str, torch.Tensor]
Plan: TypeAlias = Literal["head", "last-block", "all", "gradual"]

LOWEST_BAND_FIRST = (*sound.NAMES, whisper.NAME)
"""Networks that were trained with the lowest band in row 0, where our pictures have the highest."""
OWN = (*sequence.NAMES, *LOWEST_BAND_FIRST)
SHORT_NAMES = {"mobilenet": "mobilenetv2_100", "inceptionv3": "inception_v3"}


class SpectrogramNet(nn.Module):
    """A backbone, its input normalisation and a head.

    Args:
        backbone: name of the network.
        classes: number of labels.
        hidden: width of a dense layer between backbone and output; 0 for none.
        dropout: share of features dropped before each dense layer in training.

    Raises:
        TrainingError: timm has no such network.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: str, classes: int, *, hidden: int = 0, dropout: float = 0.2) -> None:
        super().__init__()
        name = SHORT_NAMES.get(backbone, backbone)
        if not timm.is_model(name):
            near = timm.list_models(f"*{name}*")[:5]
            hint = (
                f"near are {', '.join(near)}"
                if near
                else f"mobilenet, vgg16, vgg19, inceptionv3, {', '.join(OWN)} and timm's names work"
            )
            raise TrainingError(f"there is no backbone {backbone!r}; {hint}")
        self.backbone_name, self.hidden, self.classes = backbone, hidden, classes
        self.backbone = timm.create_model(name, pretrained=False, num_classes=0)
        self.config: dict[str, Any] = timm.data.resolve_data_config({}, model=self.backbone)
        self.channels: int = self.config["input_size"][0]
        self.turned = name in LOWEST_BAND_FIRST
        self.register_buffer("mean", torch.zeros(1, self.channels, 1, 1), persistent=False)
        self.register_buffer("std", torch.ones(1, self.channels, 1, 1), persistent=False)
        self.set_normalisation(self.config["mean"], self.config["std"])
        features = int(self.backbone.head_hidden_size)
        self.features = hidden or features
        layers: list[nn.Module] = [nn.Dropout(dropout)]
        if hidden:
            layers += [nn.Linear(features, hidden), nn.ReLU(), nn.Dropout(dropout)]
        self.head = nn.Sequential(*layers, nn.Linear(self.features, classes))
        self.feature_norm: FeatureNorm | None = None

    def add_feature_norm(self) -> FeatureNorm:
        """Put a norm without effect between backbone and head, whose statistics can be adapted; returns it."""
        self.feature_norm = FeatureNorm(int(self.backbone.head_hidden_size)).eval()
        return self.feature_norm

    def set_normalisation(self, mean: Sequence[float], std: Sequence[float], turned: bool | None = None) -> None:
        """Set mean and standard deviation of the input's channels, as shares of the gray scale.

        Args:
            mean: one value per channel.
            std: one value per channel.
            turned: whether pictures are flipped upside down, with the lowest band in row 0; None leaves it unchanged.
        """
        self.turned = self.turned if turned is None else turned
        self.mean.copy_(torch.tensor(mean).view(self.mean.shape) * 255)
        self.std.copy_(torch.tensor(std).view(self.std.shape) * 255)

    def embed(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the features before the head, of shape (batch, features).

        Args:
            pictures: of shape (batch, 1 or 3, height, width), values 0 to 255, uint8 or float; one channel for networks
                with one input channel.
        """
        if self.turned:
            pictures = pictures.flip(2)
        normalised = (pictures.to(self.mean.dtype) - self.mean) / self.std  # broadcasts one channel to three if needed
        features: torch.Tensor = self.backbone(normalised.contiguous(memory_format=torch.channels_last))
        return features if self.feature_norm is None else self.feature_norm(features)

    def penultimate(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the input of the last layer, of shape (batch, `features`), for pictures as in `embed`."""
        read: torch.Tensor = self.head[:-1](self.embed(pictures))
        return read

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (batch, labels) for pictures as in `embed`."""
        logits: torch.Tensor = self.head(self.embed(pictures))
        return logits

    def check_pictures(self, spec: SpectrogramSpec) -> None:
        """Raise TrainingError if the backbone cannot take pictures of a spec."""
        _, height, width = self.config["input_size"]
        fixed = self.backbone.pretrained_cfg.get("fixed_input_size", False)
        if fixed and (spec.height, spec.width) != (height, width):
            raise TrainingError(
                f"{self.backbone_name} takes pictures of {width} x {height} only, these are "
                f"{spec.width} x {spec.height}: render with --spec.height {height} --spec.width {width} "
                f"(and --spec.n_fft 2048)"
            )
        if self.backbone_name == whisper.NAME and (spec.height != whisper.BANDS or spec.width > whisper.MOST_COLUMNS):
            raise TrainingError(
                f"{self.backbone_name} takes pictures of {whisper.BANDS} bands and {whisper.MOST_COLUMNS} columns at "
                f"most, these have {spec.height} and {spec.width}: render with --spec whisper"
            )
        if self.channels == 1 and spec.channels != "gray":
            raise TrainingError(
                f"{self.backbone_name} takes gray pictures only, these have colours: render with --spec.channels gray"
            )


def network_of(backbone: str, weights: str) -> str:
    """Return the name of the network to build: that of the weights if the backbone's name stands for a family.

    Args:
        backbone: name of a network, or of a family of networks, such as `mobilenet`.
        weights: as in `load_weights`.

    Raises:
        TrainingError: the weights are named ones of another backbone.
        CheckpointError: they are from a damaged checkpoint.
    """
    if weights in PRETRAINED:
        network = PRETRAINED[weights].network
        if backbone not in (network, *PRETRAINED[weights].families):
            raise TrainingError(
                f"{weights} are the weights of {network}, and not of {backbone}: choose --backbone {network}, "
                "or other --weights"
            )
        return network
    if (folder := checkpoint_of(Path(weights))) is not None:
        network = metadata.Description.read(folder).backbone
        if any(one.network == network and backbone in one.families for one in PRETRAINED.values()):
            return network
    return backbone


def load_weights(net: SpectrogramNet, weights: str, spec: SpectrogramSpec) -> str:
    """Load the backbone's starting weights, and their input normalisation; the head keeps its weights.

    Args:
        net: the network.
        weights: `auto` fetches timm's published ImageNet weights; `none` keeps random ones; a name in `PRETRAINED`
            fetches those, if they are not in the cache; otherwise a file (.safetensors, or a PyTorch state dict with
            timm's or torchvision's names) or a checkpoint folder of ours.
        spec: the spec of the input pictures.

    Returns:
        the source of the weights, for the checkpoint's card.

    Raises:
        WeightsError: they cannot be fetched or read, or do not fit; there is never a silent fallback.
    """
    if weights == "none":
        return "random initialisation"
    if weights == "auto":
        return _fetch(net)
    origin, path = f"file {Path(weights).name}", Path(weights)
    if weights in PRETRAINED:
        own = PRETRAINED[weights]
        seen = own.normalisation(spec)
        net.set_normalisation(seen["mean"], seen["std"])
        origin, path = f"{weights} ({own.title}; {own.licence}; {own.url})", convert.kept(weights)
    elif (folder := checkpoint_of(path)) is not None:
        _take_normalisation(net, folder)
    given = _read_state(path / WEIGHTS_FILE if path.is_dir() else path)
    expected = net.backbone.state_dict()
    _fit(expected, _to_timm_names(given, net.backbone), f"{weights} for {net.backbone_name}")
    return origin


def checkpoint_of(weights: Path) -> Path | None:
    """Return the checkpoint folder of weights, given as the folder or its weights file; None if it is none."""
    folder = weights.parent if weights.name == WEIGHTS_FILE else weights
    return folder if (folder / DESCRIPTION_FILE).is_file() else None


def _take_normalisation(net: SpectrogramNet, folder: Path) -> None:
    """Give the network the input normalisation of a checkpoint.

    Raises:
        CheckpointError: the checkpoint's description is damaged.
        WeightsError: its network has another number of channels.
    """
    found = metadata.Description.read(folder).normalisation
    if not len(found.mean) == len(found.std) == net.channels:
        raise WeightsError(
            f"{folder}: its network reads {len(found.mean)} channels, {net.backbone_name} {net.channels}"
        )
    net.set_normalisation(found.mean, found.std, turned=found.turned)


def weights_identity(weights: str) -> str:
    """Return `auto`, `none`, or a file's name with its SHA-256: an identity of the starting weights."""
    if weights in PRETRAINED and PRETRAINED[weights].sha256:
        return f"{weights} sha256:{PRETRAINED[weights].sha256}"
    path = Path(weights) / WEIGHTS_FILE if Path(weights).is_dir() else Path(weights)
    if weights in PRETRAINED:  # without a published checksum the converted file is hashed
        path = convert.kept(weights)
    if weights in ("auto", "none") or not path.is_file():
        return Path(weights).name
    with path.open("rb") as file:
        return f"{path.name} sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def classifier_identity(folder: str) -> str:
    """Return an identity of a checkpoint's probabilities: that of its weights, and its temperature.

    Raises:
        CheckpointError: the folder holds no checkpoint.
    """
    return f"{weights_identity(folder)} temperature:{metadata.Description.read(Path(folder)).temperature:g}"


def _fetch(net: SpectrogramNet) -> str:
    name = SHORT_NAMES.get(net.backbone_name, net.backbone_name)
    try:
        published = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the hub's client passes on errors of many libraries
        raise WeightsError(
            f"the ImageNet weights of {net.backbone_name} cannot be fetched ({_reason(error)}); "
            "give a file with --weights PATH, or start from random weights with --weights none"
        ) from error
    net.backbone.load_state_dict(published.state_dict())
    return f"timm {published.pretrained_cfg.get('architecture', name)}.{published.pretrained_cfg.get('tag', '')}"


def _read_state(path: Path) -> StateDict:
    """Read a state dict, unpickling nothing but tensors."""
    try:
        if path.suffix == ".safetensors":
            return {name: tensor.float() for name, tensor in load_file(path).items()}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise WeightsError(f"{path}: cannot be read as weights ({_reason(error)})") from error
    except Exception as error:  # pickle.UnpicklingError, and errors of broken pickles
        raise WeightsError(
            f"{path}: holds more than tensors, and is not loaded for safety; save its state_dict() alone"
        ) from error
    content = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise WeightsError(f"{path}: holds no state dict (names and tensors)")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def _reason(error: Exception) -> str:
    """Return an error's class and the first line of its message."""
    return f"{type(error).__name__}: {(str(error) or 'no reason given').splitlines()[0]}"


def _to_timm_names(given: StateDict, backbone: nn.Module) -> StateDict:
    """Return a state dict in timm's names, from ours, timm's or torchvision's, without heads."""
    if any(name.startswith("backbone.") for name in given):
        return {name.removeprefix("backbone."): value for name, value in given.items() if name.startswith("backbone.")}
    expected = backbone.state_dict()
    if "pre_logits.fc1.weight" in expected and "classifier.0.weight" in given:
        given = _from_torchvision_vgg(given, expected)
    elif "conv_stem.weight" in expected and "features.0.0.weight" in given:
        given = _by_order(given, expected)
    heads = (f"{_classifier(backbone)}.", "AuxLogits.", "head.", "classifier.", "fc.")
    return {name: value for name, value in given.items() if name in expected or not name.startswith(heads)}


def _from_torchvision_vgg(given: StateDict, expected: StateDict) -> StateDict:
    """torchvision's dense layers 0 and 3 are timm's convolutions `pre_logits.fc1` and `fc2`."""
    renamed = {}
    for name, value in given.items():
        new = name.replace("classifier.0.", "pre_logits.fc1.").replace("classifier.3.", "pre_logits.fc2.")
        fits = new in expected and expected[new].numel() == value.numel()
        renamed[new] = value.reshape(expected[new].shape) if fits else value
    return renamed


def _by_order(given: StateDict, expected: StateDict) -> StateDict:
    """torchvision's MobileNetV2 has the same layers as timm's, in the same order under other names."""
    body = {name: value for name, value in given.items() if not name.startswith("classifier.")}
    if len(body) != len(expected):
        return given
    return dict(zip(expected, body.values(), strict=True))


def _classifier(backbone: nn.Module) -> str:
    config: Any = backbone.pretrained_cfg
    return str(config.get("classifier") or "head")


def _fit(expected: StateDict, given: StateDict, what: str) -> None:
    """Copy `given` into `expected`; raise WeightsError that lists every mismatch."""
    missing = [name for name in expected if name not in given and not name.endswith("num_batches_tracked")]
    extra = [name for name in given if name not in expected]
    shapes = [
        f"{name} is {tuple(given[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in given and given[name].shape != expected[name].shape
    ]
    problems = [
        f"{len(found)} {kind}: {', '.join(found[:8])}{', ...' if len(found) > 8 else ''}"
        for kind, found in (("missing", missing), ("unknown", extra), ("of another shape", shapes))
        if found
    ]
    if problems:
        raise WeightsError(f"{what}: the weights do not fit: {'; '.join(problems)}")
    with torch.no_grad():
        for name in expected:
            if name in given:
                expected[name].copy_(given[name])


def layers(net: SpectrogramNet) -> list[list[str]]:
    """Return the names of the network's parameters by layer, from input to head, as timm groups them."""
    groups = group_parameters(net.backbone, net.backbone.group_matcher(coarse=True))
    body = [[f"backbone.{name}" for name in names] for _, names in sorted(groups.items())]
    return [*body, [f"head.{name}" for name, _ in net.head.named_parameters()]]


def trainable(net: SpectrogramNet, plan: Plan, progress: float = 1.0) -> set[str]:
    """Return the names of the parameters that a plan trains.

    Args:
        net: the network.
        plan: `head`: the head alone; `last-block`: also all layers after the second-to-last resolution stage; `all`;
            `gradual`: from the head towards the input, one layer after the other during the first half of the run.
        progress: share of the run that has passed, 0 to 1.
    """
    groups = layers(net)
    if plan == "head":
        return set(groups[-1])
    if plan == "last-block":
        return set(groups[-1]) | _last_block(net)
    if plan == "gradual":
        thawed = 1 + round(min(1.0, 2 * progress) * (len(groups) - 1))
        groups = groups[-thawed:]
    return {name for group in groups for name in group}


def _last_block(net: SpectrogramNet) -> set[str]:
    """Return the backbone's parameters after the end of its second-to-last stage, from timm's feature info."""
    order = {name: place for place, (name, _) in enumerate(net.backbone.named_modules())}
    places = {name: order[name.rpartition(".")[0]] for name, _ in net.backbone.named_parameters()}
    ends = [
        max(place for name, place in order.items() if f"{name}.".startswith(f"{stage['module']}."))
        for stage in net.backbone.feature_info
    ]
    while not any(ends[-2] < place <= ends[-1] for place in places.values()):
        ends.pop()  # a last stage without parameters, such as VGG's last pooling
    return {f"backbone.{name}" for name, place in places.items() if place > ends[-2]}
