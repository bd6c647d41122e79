"""The export verb: write a checkpoint as ONNX and OpenVINO IR."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from spectro.engines.export import check_replaceable, export, synthetic
from spectro.errors import PredictionError
from spectro.files import printable
from spectro.model import metadata as descriptions
from spectro.model.locate import default_checkpoint
from spectro.picture import png
from spectro.picture.spec import Image, SpectrogramSpec
from spectro.schema import check_least


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Export a checkpoint's network to ONNX, and to OpenVINO IR if openvino is installed.

    The output folder is a checkpoint for prediction only: `spectro predict --checkpoint OUT` needs no PyTorch.
    Nothing is written unless probabilities agree with PyTorch's to 0.0001. Predicting with --engine onnx or openvino
    needs no export: it makes its own once and caches it.

    Args:
        checkpoint: checkpoint folder; null for the shipped checkpoint.
        out: output folder; null for CHECKPOINT-export.
        index: folder of a rendering whose unaugmented clips are compared; null compares clips of the synthetic corpus.
        pictures: maximum number of pictures to compare.
    """

    checkpoint: Path | None = None
    out: Path | None = None
    index: Path | None = None
    pictures: int = 500

    def __post_init__(self) -> None:
        check_least(self, PredictionError, pictures=1)


def run(settings: ExportSettings) -> int:
    """Run the verb; returns its exit code."""
    folder = (settings.checkpoint or default_checkpoint()).resolve()
    out = settings.out or folder.with_name(f"{folder.name}-export")
    check_replaceable(out)
    spec = descriptions.Description.read(folder).spec
    pictures = synthetic(spec) if settings.index is None else _rendered(settings.index, spec)
    found = export(folder, out, list(islice(pictures, settings.pictures)))
    for engine, figures in found.items():
        print(
            f"{engine}: {figures['pictures']} pictures, {figures['agreement']:.2%} with the same label as PyTorch, "
            f"probabilities within {figures['difference']:.1e}"
        )
    print(f"{', '.join(sorted(path.name for path in out.iterdir()))} in {printable(out)}")
    return 0


def _rendered(folder: Path, spec: SpectrogramSpec) -> Iterator[Image]:
    from spectro.rendering.index import read_index

    index, _spec = read_index(folder)
    untouched = index[index["copy"] == 0].sample(frac=1.0, random_state=0)
    for name in untouched["image"]:
        yield png.read(folder / name, spec).pixels
