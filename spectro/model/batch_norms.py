"""The statistics of batch norms and of features: estimated on untouched pictures, and again on others."""

import copy
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch import nn

BatchNorm: TypeAlias = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


RELEVANCE = 4.0
"""Number of a voice's clips whose statistics count as much as those of the training clips. It was chosen on validation
speakers of RAVDESS, with Whisper's encoder."""


class FeatureNorm(nn.BatchNorm1d):
    """A batch norm between a trained backbone and its head, so that features can be adapted in any network.

    It standardises features by its statistics, and then gives them the mean and the deviation of the training
    pictures. Until the statistics are adapted to other pictures, it leaves features as they are.

    Args:
        features: number of features.

    Source: Busso et al., Iterative feature normalization scheme for automatic emotion detection from speech, IEEE
    Transactions on Affective Computing 4 (2013), for the standardisation of features by speaker.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, features: int) -> None:
        super().__init__(features, affine=False)
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("shift", torch.zeros(features))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return adapted features of shape (batch, features)."""
        adapted: torch.Tensor = super().forward(features) * self.scale + self.shift
        return adapted

    @torch.no_grad()
    def keep(self) -> None:
        """Make the statistics those of the training pictures."""
        assert self.running_mean is not None and self.running_var is not None
        self.shift.copy_(self.running_mean)
        self.scale.copy_((self.running_var + self.eps).sqrt())


def found(net: nn.Module) -> list[BatchNorm]:
    """Return the batch norms of a network's backbone that have statistics."""
    return [
        one
        for one in net.modules()
        if isinstance(one, BatchNorm) and not isinstance(one, FeatureNorm) and one.running_mean is not None
    ]


def adaptable(net: nn.Module) -> list[BatchNorm]:
    """Return the batch norms of a network's backbone, or that of its features if the backbone has none."""
    return found(net) or of_features(net)


def statistics(net: nn.Module) -> list[str]:
    """Return what `adapt_to_voice` adapts in a network: `batch norms`, `features`, or both."""
    return ["batch norms"] * bool(found(net)) + ["features"] * bool(of_features(net))


def of_features(net: nn.Module) -> list[BatchNorm]:
    """Return the batch norm of a network's features; none if it is not trained, or was by an earlier version."""
    return [one for one in net.modules() if isinstance(one, FeatureNorm)]


@torch.no_grad()
def calibrate(
    net: nn.Module,
    batches: Iterable[torch.Tensor | Sequence[torch.Tensor]],
    run: Callable[[Any], object] | None = None,
    *,
    device: int = 0,
    devices: int = 1,
    add: Callable[[torch.Tensor], torch.Tensor] | None = None,
    norms: Sequence[BatchNorm] | None = None,
) -> None:
    """Re-estimate the statistics of batch norms that are trained, on pictures like those in use.

    In training they are estimated on masked, warped and mixed pictures, which have other means and variances. Training
    itself does not depend on them. Frozen layers keep theirs.

    Args:
        net: the network; it is left in evaluation mode.
        batches: untouched training pictures, of shape (batch, channels, height, width).
        run: passes a batch through the network; None calls the network itself.
        device: number of this device, from 0; it takes every `devices`-th batch.
        devices: number of devices that share the batches.
        add: returns the sum of a tensor over all devices; required with several devices.
        norms: the batch norms; None for those that are trained.

    Source: Wu & Johnson, Rethinking "Batch" in BatchNorm, arXiv:2105.07576, section 3 (precise batch norm).
    """
    net.eval()
    if norms is None:
        norms = [module for module in net.modules() if isinstance(module, BatchNorm) and _is_trained(module)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
        norm.train()
    taken = 0
    for batch in islice(batches, device, None, devices):
        (run or net)(batch)
        taken += 1
    if add is not None and devices > 1:
        statistics = [one for norm in norms for one in (norm.running_mean, norm.running_var) if one is not None]
        own = torch.cat([buffer.flatten() for buffer in statistics])
        whole = add(torch.cat([own * taken, own.new_tensor([taken])]))
        mean, start = whole[:-1] / whole[-1], 0
        for buffer in statistics:
            buffer.copy_(mean[start : start + buffer.numel()].view_as(buffer))
            start += buffer.numel()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


@torch.no_grad()
def adapt(
    net: nn.Module, batches: Iterable[torch.Tensor], share: float, *, norms: Sequence[BatchNorm] | None = None
) -> None:
    """Move the statistics of batch norms towards those of other pictures, without labels.

    Means and variances become those of a mixture of the pictures that the network was calibrated on and the new ones.
    All new statistics are estimated before any is mixed, so that the mixture is exact for the first layer alone. Mixing
    layer by layer was no better (docs/results.md).

    Args:
        net: the network; it is left in evaluation mode.
        batches: pictures of shape (batch, channels, height, width), at least two in each batch.
        share: weight of the new pictures in the mixture, 0 to 1.
        norms: the batch norms; None for those of the backbone, or that of the features if it has none.

    Source: Schneider et al., Improving robustness against common corruptions by covariate shift adaptation, NeurIPS
    2020, section 3. They average the variances; here the distance between the means counts, too.
    """
    norms = adaptable(net) if norms is None else norms
    before = copy.deepcopy(norms)
    calibrate(net, batches, norms=norms)
    for norm, source in zip(norms, before, strict=True):
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None and variance is not None
        assert source.running_mean is not None and source.running_var is not None
        mixed = source.running_mean.lerp(mean, share)
        own = variance + (mean - mixed) ** 2
        variance.copy_((source.running_var + (source.running_mean - mixed) ** 2).lerp(own, share))
        mean.copy_(mixed)


def adapt_to_voice(net: nn.Module, batches: Sequence[torch.Tensor]) -> None:
    """Adapt a network to the clips of one voice, without labels: trained batch norms, then its features.

    The statistics of batch norms become those of the clips. A feature has one value per clip, where a channel of a
    picture has many, so those of features become a mixture: n clips have a weight of n / (n + `RELEVANCE`).

    Args:
        net: the network; it is left in evaluation mode.
        batches: the clips' pictures, of shape (batch, channels, height, width), at least two in each batch.

    Sources: Li et al., Adaptive batch normalization for practical domain adaptation, Pattern Recognition 80 (2018);
    Reynolds et al., Speaker verification using adapted Gaussian mixture models, Digital Signal Processing 10 (2000),
    section 3.3, for the weight.
    """
    calibrate(net, batches)
    clips = sum(map(len, batches))
    adapt(net, batches, clips / (clips + RELEVANCE), norms=of_features(net))


def strided(pictures: int, batch_size: int) -> list[range]:
    """Return the places of the pictures of each batch: like random batches, each takes from the whole sequence.

    Args:
        pictures: number of pictures.
        batch_size: least number of pictures in a batch, if there are as many, but two at least; a batch has fewer than
            twice as many.
    """
    count = max(1, pictures // max(2, batch_size))
    return [range(start, pictures, count) for start in range(count)]


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))
