"""Convert the InceptionV3 of the npm package nsfwjs to safetensors with torchvision's names.

    python scripts/inceptionv3_from_tfjs.py package/dist/models/inception_v3 inceptionv3_tfjs.safetensors
    spectro weights inceptionv3_tfjs --from inceptionv3_tfjs.safetensors

For machines that cannot reach a hub. The folder holds TensorFlow.js's manifest and shards as modules. Tensors are 8-bit
integers with a minimum and a scale; shards are base64. The first 51 of the 94 convolutions were not trained further, so
they are ImageNet's. The rest were fine-tuned on other photographs. The package's own head is left out.
"""

import base64
import re
import sys
from pathlib import Path

import numpy as np
import torch
import torchvision
from safetensors.torch import save_file
from torchvision.models.inception import BasicConv2d

TENSOR = re.compile(
    r'\{name:"(?P<name>[^"]+)",shape:\[(?P<shape>[\d,]*)\],dtype:"float32",'
    r'quantization:\{min:(?P<min>[-\d.e]+),scale:(?P<scale>[-\d.e]+),dtype:"uint8"\}\}'
)
BASE64 = re.compile(r'"([A-Za-z0-9+/]{64,}=*)"')
PARTS = {"beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a folder, float32, keyed by TensorFlow.js's names."""
    listed = [match.groupdict() for match in TENSOR.finditer((folder / "model.min.js").read_text())]
    shards = sorted(folder.glob("group1-shard*.min.js"))
    content = b"".join(base64.b64decode(text) for path in shards for text in BASE64.findall(path.read_text()))
    shapes = [[int(size) for size in one["shape"].split(",")] for one in listed]
    told = sum(int(np.prod(shape)) for shape in shapes)
    if not listed or told != len(content):
        raise SystemExit(f"{folder}: the manifest lists {told} bytes, but the shards hold {len(content)}")
    found, start = {}, 0
    for one, shape in zip(listed, shapes, strict=True):
        count = int(np.prod(shape))
        integers = np.frombuffer(content, np.uint8, count, start).reshape(shape)
        found[one["name"]] = (integers * float(one["scale"]) + float(one["min"])).astype(np.float32)
        start += count
    return found


def in_torchvision_names(given: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the convolutions and batch norms, which are ordered as in torchvision's without its auxiliary head."""

    def number(name: str) -> int:
        return int((re.findall(r"_(\d+)/", name) or ["0"])[0])

    kernels = sorted((name for name in given if name.startswith("conv2d")), key=number)
    norms = sorted(
        {name.split("/")[0] for name in given if name.startswith("batch_norm")}, key=lambda n: number(f"{n}/")
    )
    network = torchvision.models.inception_v3(weights=None, init_weights=False)
    layers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, BasicConv2d) and not name.startswith("AuxLogits")
    ]
    found = {}
    for layer, kernel, norm in zip(layers, kernels, norms, strict=True):
        found[f"{layer}.conv.weight"] = torch.from_numpy(given[kernel].transpose(3, 2, 0, 1).copy())
        for theirs, ours in PARTS.items():
            found[f"{layer}.bn.{ours}"] = torch.from_numpy(given[f"{norm}/{theirs}"].copy())
        found[f"{layer}.bn.weight"] = torch.ones_like(found[f"{layer}.bn.bias"])
    return found


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    save_file(in_torchvision_names(tensors(Path(sys.argv[1]))), Path(sys.argv[2]))
