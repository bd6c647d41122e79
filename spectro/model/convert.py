"""Published weights -> safetensors in timm's names, kept in the cache, for the networks of `spectro.model.sound`."""

import hashlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import timm
import torch
from safetensors.torch import save

from spectro.errors import DownloadError, WeightsError
from spectro.files import printable, write_bytes
from spectro.model import sound
from spectro.model.pretrained import PRETRAINED
from spectro.remote import RemoteFile, fetch, matches, new_session

StateDict = dict[str, torch.Tensor]


def keep(name: str, original: Path | None = None) -> Path:
    """Convert starting weights, and keep them in the cache; fetch the original file first if it is not given.

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
    if original is None:
        file = RemoteFile(url=weights.url, path=PurePosixPath(weights.original), checksum=f"sha256:{weights.sha256}")
        with new_session() as session:
            try:
                original = fetch(session, file, weights.path.parent, show_progress=True)
            except DownloadError as error:
                raise DownloadError(
                    f"{error}; or have {weights.original} by other means, and name it: "
                    f"spectro weights {name} --from {weights.original}"
                ) from error
    elif not original.is_file():
        raise WeightsError(f"{printable(original)}: is not a file; name {weights.original} of {weights.url}")
    elif not matches(original, f"sha256:{weights.sha256}"):
        with original.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        raise WeightsError(
            f"{printable(original)}: is not {weights.original} of {weights.url}: its SHA-256 is {found}, not "
            f"{weights.sha256}; fetch it again"
        )
    convert(name, original, weights.path)
    return weights.path


def kept(name: str) -> Path:
    """Return the path of starting weights in the cache; fetched and converted if they are not there.

    Raises:
        WeightsError, DownloadError: as `keep`.
    """
    path = PRETRAINED[name].path
    return path if path.is_file() else keep(name)


def convert(name: str, original: Path, path: Path) -> None:
    """Write starting weights, read from their original file, as safetensors.

    Args:
        name: a name in `PRETRAINED`.
        original: the original file.
        path: where to write.

    Raises:
        WeightsError: the file does not hold what it should.
    """
    expected = timm.create_model(PRETRAINED[name].network, num_classes=0).state_dict()
    try:
        state = READERS[name](original, expected)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
        raise WeightsError(f"{printable(original)}: does not hold the weights {name} ({error})") from error
    write_bytes(path, save({tensor: value.contiguous() for tensor, value in state.items()}))


def read_efficientat(path: Path, expected: StateDict) -> StateDict:
    """Read a network of EfficientAT: torchvision's order is timm's, dense layers are convolutions of 1 x 1 there.

    Args:
        path: a PyTorch state dict of tensors alone, whose last two tensors are AudioSet's output layer.
        expected: the network's own tensors, by timm's names.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    body = list(content.values())[:-2]
    if len(body) != len(expected):
        raise ValueError(f"it has {len(body)} tensors, not {len(expected)}")
    return {name: value.reshape(own.shape) for (name, own), value in zip(expected.items(), body, strict=True)}


READERS: dict[str, Callable[[Path, StateDict], StateDict]] = {"mn04_as": read_efficientat}
"""How the original file of starting weights is read, by their name."""

assert set(READERS) == set(PRETRAINED) and {one.network for one in PRETRAINED.values()} <= set(sound.NAMES)
