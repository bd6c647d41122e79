"""The statistics of batch norms: estimated again on untouched pictures, or on a user's own."""

import copy
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch import nn

BatchNorm: TypeAlias = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def found(net: nn.Module) -> list[BatchNorm]:
    """Return the batch norms of a network that have statistics."""
    return [one for one in net.modules() if isinstance(one, BatchNorm) and one.running_mean is not None]


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
def adapt(net: nn.Module, batches: Iterable[torch.Tensor], share: float) -> None:
    """Move the statistics of batch norms towards those of other pictures, without labels.

    Means and variances become those of a mixture of the pictures that the network was calibrated on and the new ones.
    All new statistics are estimated before any is mixed, so that the mixture is exact for the first layer alone. Mixing
    layer by layer was no better (docs/results.md).

    Args:
        net: the network; it is left in evaluation mode.
        batches: pictures of shape (batch, channels, height, width), at least two in each batch.
        share: weight of the new pictures in the mixture, 0 to 1.

    Source: Schneider et al., Improving robustness against common corruptions by covariate shift adaptation, NeurIPS
    2020, section 3. They average the variances; here the distance between the means counts, too.
    """
    before = copy.deepcopy(found(net))
    calibrate(net, batches, norms=found(net))
    for norm, source in zip(found(net), before, strict=True):
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None and variance is not None
        assert source.running_mean is not None and source.running_var is not None
        mixed = source.running_mean.lerp(mean, share)
        own = variance + (mean - mixed) ** 2
        variance.copy_((source.running_var + (source.running_mean - mixed) ** 2).lerp(own, share))
        mean.copy_(mixed)


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
