"""Converts named published weights to safetensors with timm's names, in the cache."""

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from spectro.errors import DownloadError, WeightsError
from spectro.files import held, printable, write_bytes
from spectro.model import folded, sound, whisper
from spectro.model.pretrained import PRETRAINED, StartingWeights
from spectro.remote import RemoteFile, fetch, matches, new_session

Output: TypeAlias = tuple[torch.Tensor, torch.Tensor]

OUTPUT = ("classifier.weight", "classifier.bias")
"""Names of the tensors of an output layer, beside those of the network."""
WAIT_S = 3600.0
"""How long to wait for another process that fetches the same weights."""


def keep(name: str, original: Path | None = None) -> Path:
    """Convert starting weights and store them in the cache; the original file is fetched if it is not given.

    Args:
        name: a name in `PRETRAINED`.
        original: the original file; None fetches it.

    Returns:
        path of the converted weights.

    Raises:
        WeightsError: the name is unknown, or the file is not the original.
        DownloadError: the file cannot be fetched.
    """
    if name not in PRETRAINED:
        raise WeightsError(f"there are no starting weights {name!r}; there are {', '.join(PRETRAINED)}")
    weights = PRETRAINED[name]
    if original is None and weights.script:
        raise WeightsError(
            f"{name} is not published as a file: make one from {weights.url} with scripts/{weights.script} of "
            f"spectro's repository, then run: spectro weights {name} --from FILE"
        )
    if original is None and weights.hub:
        original = _from_hub(weights)
    elif original is None:
        file = RemoteFile(url=weights.url, path=PurePosixPath(weights.original), checksum=f"sha256:{weights.sha256}")
        with new_session() as session:
            try:
                original = fetch(session, file, weights.path.parent, show_progress=True)
            except DownloadError as error:
                raise DownloadError(
                    f"{error}; or get {weights.original} by other means, and run: "
                    f"spectro weights {name} --from {weights.original}"
                ) from error
    elif not original.is_file():
        wanted = (
            f"the file that scripts/{weights.script} makes"
            if weights.script
            else f"{weights.original} of {weights.url}"
        )
        raise WeightsError(f"{printable(original)}: is not a file; name {wanted}")
    elif weights.sha256 and not matches(original, f"sha256:{weights.sha256}"):
        with original.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        raise WeightsError(
            f"{printable(original)}: is not {weights.original} of {weights.url}: its SHA-256 is {found}, not "
            f"{weights.sha256}; fetch it again"
        )
    convert(name, original, weights.path)
    return weights.path


def _from_hub(weights: StartingWeights) -> Path:
    """Return a file of the Hugging Face hub; the hub's own client fetches, resumes, checks and caches it.

    Raises:
        DownloadError: it cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(weights.hub, weights.original))
    except Exception as error:  # the hub's client passes on errors of many libraries
        raise DownloadError(
            f"{weights.hub}: {weights.original} cannot be fetched ({type(error).__name__}); get it by other means, "
            f"and run: spectro weights {weights.name} --from {weights.original}"
        ) from error


def kept(name: str) -> Path:
    """Return the path of starting weights in the cache; missing ones are fetched and converted first.

    Raises:
        WeightsError, DownloadError: as `keep`.
    """
    path = PRETRAINED[name].path
    if path.is_file():
        return path
    with held(path.with_name(f".{path.name}.lock"), wait_s=WAIT_S) as free:  # another process may be fetching them
        if path.is_file():
            return path
        if not free:
            raise WeightsError(f"{name}: another run is still fetching these weights; try again when that has ended")
        return keep(name)


def convert(name: str, original: Path, path: Path) -> None:
    """Write starting weights, read from their original file, as safetensors.

    Args:
        name: a name in `PRETRAINED`.
        original: the original file.
        path: path of the converted file.

    Raises:
        WeightsError: the file does not hold these weights.
    """
    network = timm.create_model(PRETRAINED[name].network, num_classes=0)
    try:
        output = READERS[name](original, network)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, struct.error, SafetensorError) as error:
        raise WeightsError(f"{printable(original)}: does not hold the weights {name} ({error})") from error
    kept = network.state_dict() | ({} if output is None else dict(zip(OUTPUT, output, strict=True)))
    write_bytes(path, save({tensor: value.contiguous() for tensor, value in kept.items()}))


def output_layer(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output layer of starting weights that were trained on AudioSet: weight (classes, features) and bias.

    Raises:
        WeightsError: they have none, or were converted before it was kept.
    """
    kept_tensors = load_file(kept(name))
    try:
        return kept_tensors[OUTPUT[0]], kept_tensors[OUTPUT[1]]
    except KeyError as error:
        raise WeightsError(
            f"{name}: the converted weights hold no output layer; remove {printable(PRETRAINED[name].path)}, and run "
            f"spectro weights {name}"
        ) from error


def read_efficientat(path: Path, network: nn.Module) -> Output:
    """Read a network of EfficientAT: its order of tensors is timm's; its dense layers are 1 x 1 convolutions there.

    Args:
        path: a PyTorch state dict of tensors alone, whose last two tensors are AudioSet's output layer.
        network: timm's network, which receives the weights.

    Returns:
        weight and bias of AudioSet's output layer.
    """
    expected = network.state_dict()
    content = torch.load(path, map_location="cpu", weights_only=True)
    *body, weight, bias = content.values()
    if len(body) != len(expected):
        raise ValueError(f"it has {len(body)} tensors, not {len(expected)}")
    pairs = zip(expected.items(), body, strict=True)
    network.load_state_dict({name: value.reshape(own.shape) for (name, own), value in pairs})
    return weight, bias


def read_yamnet(path: Path, network: nn.Module) -> Output:
    """Read YAMNet from TensorFlow Lite's file, whose input has frames as rows and bands as columns.

    Returns:
        weight and bias of AudioSet's output layer.
    """
    *convolutions, output = folded.read(path)
    if output.weight.ndim != 2:
        raise ValueError("it has no output layer")
    folded.fill(network, convolutions, transposed=True)
    return output


def read_mobilenetv2(path: Path, network: nn.Module) -> None:
    """Read MobileNetV2 from TensorFlow Lite's file.

    TensorFlow pads pictures of even size only at the end, timm's network at both ends: features are shifted by a pixel.
    """
    folded.fill(network, folded.read(path))


def read_whisper(path: Path, network: nn.Module) -> None:
    """Read a Whisper encoder from safetensors with transformers' names; the pooling after it gets small random weights.

    The encoder's positions are constants there, and a parameter here.
    """
    given = {name.removeprefix("model."): value.float() for name, value in load_file(path).items()}
    pooling = [value for name, value in network.named_parameters() if name.startswith("attention.")]
    generator = torch.Generator().manual_seed(0)
    for value in pooling:
        nn.init.normal_(value, std=0.02, generator=generator)
    own = network.state_dict()
    network.load_state_dict(own | {name: given[theirs] for name, theirs in whisper.transformers_names().items()})


def read_inceptionv3(path: Path, network: nn.Module) -> None:
    """Read an InceptionV3 from safetensors with torchvision's names, which are timm's.

    TensorFlow's average pooling ignores the padding, timm's includes it, so features at the edges differ.
    """
    missing, unknown = network.load_state_dict(load_file(path), strict=False)
    if wrong := [*unknown, *(name for name in missing if not name.endswith("num_batches_tracked"))]:
        raise ValueError(f"{len(wrong)} tensors are missing or unknown, such as {wrong[0]}")


READERS: dict[str, Callable[[Path, nn.Module], Output | None]] = {
    "mn04_as": read_efficientat,
    "yamnet": read_yamnet,
    "whisper_tiny_en": read_whisper,
    "mobilenetv2_tflite": read_mobilenetv2,
    "inceptionv3_tfjs": read_inceptionv3,
}
"""Functions that read the original file of starting weights into a network, by name of the weights."""

assert set(READERS) == set(PRETRAINED)
assert {one.network for one in PRETRAINED.values() if one.levels} == {*sound.NAMES, whisper.NAME}
