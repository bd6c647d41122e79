"""PyTorch: computes any checkpoint, on any device."""

from functools import partial
from typing import TYPE_CHECKING, Any

from spectro.engines.base import Engine, Pictures, Precision, Scores, finite, settle
from spectro.errors import PredictionError

if TYPE_CHECKING:
    from spectro.model.checkpoint import Checkpoint


class TorchEngine(Engine):
    """PyTorch.

    Args:
        checkpoint: the network, which is moved to the device.
        device: `cpu`, `cuda`, ...; None for a GPU if there is one.
        precision: with `bfloat16`, convolutions and dense layers compute in it, except for close calls.
        source: name of the checkpoint in errors; None for its backbone.

    Raises:
        PredictionError: the device does not exist.
    """

    key, package, precisions = "torch", "torch", ("float32", "bfloat16")

    def __init__(
        self,
        checkpoint: "Checkpoint",
        device: str | None = None,
        precision: Precision = "float32",
        source: str | None = None,
    ) -> None:
        import torch

        try:
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self.net = checkpoint.net.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:
            raise PredictionError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
        self.name = f"torch {torch.__version__} on {self.device}, {precision}"
        self._checkpoint, self._bfloat16 = checkpoint, precision == "bfloat16"
        super().__init__(source or checkpoint.about.backbone)

    def tensor(self, pictures: Pictures) -> Any:
        """Return pictures as a tensor of the same shape, on the network's device."""
        import torch

        return torch.from_numpy(pictures).to(self.device)

    def scores(self, pictures: Pictures) -> Scores:
        """Score a batch of pictures, uint8 of shape (pictures, 1 or 3, height, width)."""
        with self.lock:  # explanations attach hooks to the network
            rough = partial(self._scores, bfloat16=True) if self._bfloat16 else None
            return finite(settle(pictures, self._scores, rough), self._source)

    def exact(self, pictures: Pictures) -> Scores:
        """Score a batch of pictures in float32, uint8 of shape (pictures, 1 or 3, height, width)."""
        with self.lock:
            return finite(self._scores(pictures), self._source)

    def _scores(self, pictures: Pictures, bfloat16: bool = False) -> Scores:
        import torch

        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            features = self.net.penultimate(self.tensor(pictures))
            logits = self.net.head[-1](features).float().cpu().numpy()
        return Scores(self._checkpoint.about.probabilities(logits), features.float().cpu().numpy())


def on_gpu(engine: Engine) -> bool:
    """Return whether an engine computes elsewhere than on the CPU."""
    return isinstance(engine, TorchEngine) and engine.device.type != "cpu"
