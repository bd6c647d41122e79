"""The LightningModule: loss, optimiser, metrics, and which layers are trained in which epoch."""

from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import nn
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision.transforms import v2

from spectro.errors import TrainingError
from spectro.metrics import figures
from spectro.model.backbones import Plan, SpectrogramNet, layers, trainable
from spectro.model.batch_norms import calibrate
from spectro.schema import check_least
from spectro.train.data import Activations, Batch
from spectro.train.frozen_features import FrozenPrefix
from spectro.train.precision import spare_strided_depthwise

CALIBRATION_PICTURES = 256
FIGURES = ("uar", "wa", "f1")
IMPOSSIBLE = 1e-12
"""Probability of a label that a corpus does not have: its logarithm is finite, so that zero times it is zero."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a network is trained.

    Args:
        epochs: number of passes over the training clips.
        learning_rate: peak learning rate of the head with AdamW. It is reached after `warmup`, then decays to zero
            along a cosine (one-cycle).
        warmup: share of the run in which the rate rises.
        layer_decay: factor of the rate from each layer to the one before it, towards the input; 1 for one rate.
        weight_decay: weight decay of AdamW, for weights but not for biases and normalisation.
        label_smoothing: share of a target that is spread evenly over all labels.
        mixup: alpha of the beta distribution for mixing two pictures (Zhang et al., 2018); 0 for none.
        cutmix: alpha for pasting a patch of one picture into another (Yun et al., 2019); 0 for none.
        plan: which layers train: `head`, `last-block`, `all`, or `gradual` (from the head towards the input).
    """

    epochs: int = 24
    learning_rate: float = 1e-3
    warmup: float = 0.2
    layer_decay: float = 1.0
    weight_decay: float = 0.02
    label_smoothing: float = 0.1
    mixup: float = 0.3
    cutmix: float = 0.0
    plan: Plan = "all"

    def __post_init__(self) -> None:
        check_least(self, TrainingError, epochs=1)
        if self.learning_rate <= 0 or not 0 < self.layer_decay <= 1 or not 0 < self.warmup < 1:
            raise TrainingError("train needs learning_rate > 0, 0 < layer_decay <= 1 and 0 < warmup < 1")
        if not 0 <= self.label_smoothing < 1 or min(self.mixup, self.cutmix, self.weight_decay) < 0:
            raise TrainingError("train needs 0 <= label_smoothing < 1, and mixup, cutmix, weight_decay of 0 or more")


def freeze(net: SpectrogramNet, settings: TrainingSettings, epoch: int) -> None:
    """Make the parameters trainable that the plan trains in an epoch, and freeze all others."""
    chosen = trainable(net, settings.plan, epoch / settings.epochs)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in chosen)


class Classifier(pl.LightningModule):
    """Trains a `SpectrogramNet`; logs `valid_uar`, `valid_wa`, `valid_f1`, `valid_loss` and `train_loss` each epoch.

    Args:
        net: the network.
        settings: how to train it.
        seed: random seed. Each training step is seeded from (seed, step), so that a resumed run repeats the same
            steps.
        class_weights: float32 of shape (labels,) for the loss, or None.
        prior: probabilities of the labels in each corpus, float32 of shape (corpora, labels), 0 for a label that a
            corpus does not have. Their logarithms are added to the logits in the training loss, so that the logits
            alone treat all labels as equally likely, and a corpus does not train labels that it lacks. None adds
            nothing.
        unaltered: pictures are the same in every epoch, so that layers frozen for the whole run are computed once.
        possible: which labels each corpus has, bool of shape (corpora, labels): validation never predicts the others.
            None for one corpus that has all. A group without labels, of sounds without speech, has a row of its own.
        tag: a second output, whether anybody speaks, which is trained beside the labels (`spectro.train.tags`); None
            for none. Targets are then the shares of the labels followed by the probability of speech.
        remember: weight of its loss.

    Source: Menon et al., Long-tail learning via logit adjustment, ICLR 2021, section 5, for `prior`.
    """

    prior: torch.Tensor
    possible: torch.Tensor

    def __init__(
        self,
        net: SpectrogramNet,
        settings: TrainingSettings,
        seed: int = 0,
        class_weights: torch.Tensor | None = None,
        prior: torch.Tensor | None = None,
        unaltered: bool = False,
        possible: torch.Tensor | None = None,
        tag: nn.Linear | None = None,
        remember: float = 0.0,
    ) -> None:
        super().__init__()
        self.tag, self._remember = tag, remember
        self._unaltered = unaltered
        self._prefix: FrozenPrefix | None = None
        self.net, self.settings, self.seed = net, settings, seed
        possible = torch.ones(1, net.classes, dtype=torch.bool) if possible is None else possible
        self.several = len(possible) > 1
        smoothing = 0.0 if self.several else settings.label_smoothing  # it spreads over all labels alike
        self.criterion = nn.CrossEntropyLoss(weight=class_weights, label_smoothing=smoothing)
        self.register_buffer("prior", torch.ones(possible.shape) if prior is None else prior, persistent=False)
        self.register_buffer("possible", possible, persistent=False)
        classes = net.classes + len(possible) * self.several + (tag is not None)
        self.mixes = [
            mix(alpha=alpha, num_classes=classes)
            for mix, alpha in ((v2.MixUp, settings.mixup), (v2.CutMix, settings.cutmix))
            if alpha > 0
        ]
        self.valid_confusion = MulticlassConfusionMatrix(possible.numel())  # one block per corpus

    def on_fit_start(self) -> None:
        """Compute permanently frozen layers once, if they can be separated; keep layers slow in bfloat16 out of it."""
        if self._unaltered:
            self._compute_start()
        if self.device.type == "cpu" and self.trainer.precision == "bf16-mixed":
            spare_strided_depthwise(self.net)

    def _compute_start(self) -> None:
        self.net.eval()
        try:
            self._prefix = FrozenPrefix(self.net, self.settings.plan)
        except ValueError:
            pass  # they are computed in each epoch, with the same result
        else:
            self.trainer.datamodule.keep_activations(self._start, self.settings.epochs)  # type: ignore[attr-defined]
        self.net.train()

    def _start(self, pictures: torch.Tensor) -> Activations:
        assert self._prefix is not None
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            return self._prefix.start(pictures.to(self.device))

    def logits(self, given: torch.Tensor | Activations) -> torch.Tensor:
        """Return logits of shape (batch, labels) for pictures, or for their stored activations."""
        if isinstance(given, torch.Tensor):
            logits: torch.Tensor = self.net(given)
            return logits
        assert self._prefix is not None
        return self._prefix.rest(given)

    def on_train_epoch_start(self) -> None:
        """Freeze what the plan does not train yet; frozen batch norms keep their statistics."""
        freeze(self.net, self.settings, self.current_epoch)
        self.net.train()
        for module in self.net.modules():
            own = list(module.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()

    def training_step(self, batch: Batch, _index: int) -> torch.Tensor:
        """Return the loss of a batch, mixed or not."""
        torch.manual_seed((self.seed << 24) + self.global_step)
        given, targets, groups = batch
        count = len(targets)
        if self.several:  # mixed alike
            wanted = targets if targets.is_floating_point() else nn.functional.one_hot(targets, self.net.classes)
            targets = torch.cat([wanted, nn.functional.one_hot(groups, len(self.possible))], dim=1).float()
        if self.mixes and isinstance(given, torch.Tensor):
            chosen = int(torch.randint(len(self.mixes), ()))
            given, targets = self.mixes[chosen](given.float(), targets)
        if self.tag is None or not isinstance(given, torch.Tensor):
            loss = self.loss(self.logits(given), targets)
        else:
            features = self.net.embed(given)
            loss = self.loss(self.net.head(features), targets) + self._remember * self._tag_loss(features, targets)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=count, sync_dist=True)
        return loss

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the training loss of the labels.

        Args:
            logits: float of shape (batch, labels).
            targets: targets of `CrossEntropyLoss`; with several corpora, shares of labels, a tag if there is one,
                and shares of corpora, float of shape (batch, labels + tag + corpora).
        """
        if not self.several:
            loss: torch.Tensor = self.criterion(logits + self.prior[0].log(), targets)
            return loss
        wanted, groups = targets[:, : self.net.classes], targets[:, -len(self.possible) :]
        own = groups @ self.possible.float()
        smoothing, spread = self.settings.label_smoothing, own / own.sum(dim=1, keepdim=True).clamp(min=IMPOSSIBLE)
        wanted = (1 - smoothing) * wanted + smoothing * wanted.sum(dim=1, keepdim=True) * spread
        mixed: torch.Tensor = self.criterion(logits + (groups @ self.prior).clamp(min=IMPOSSIBLE).log(), wanted)
        return mixed

    def _tag_loss(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the binary cross-entropy of the second output for a batch."""
        assert self.tag is not None
        given = targets[:, self.net.classes : self.net.classes + 1]
        return nn.functional.binary_cross_entropy_with_logits(self.tag(features), given)

    def validation_step(self, batch: Batch, _index: int) -> None:
        """Evaluate a batch of validation speakers; labels that a corpus lacks are not predicted for its clips."""
        given, targets, groups = batch
        logits = self.logits(given).float().masked_fill(~self.possible[groups], -torch.inf)
        first = groups * self.net.classes
        self.valid_confusion.update(first + logits.argmax(1), first + targets)
        loss = nn.functional.cross_entropy(logits, targets)
        self.log("valid_loss", loss, on_step=False, on_epoch=True, batch_size=len(targets), sync_dist=True)

    def on_validation_epoch_start(self) -> None:
        """Estimate batch-norm statistics on untouched training clips before validation; see `calibrate`."""
        pictures = self.trainer.datamodule.calibration_dataloader(CALIBRATION_PICTURES)  # type: ignore[attr-defined]
        with self.trainer.precision_plugin.forward_context():
            calibrate(
                self.net,
                (self._moved(given) for given, _targets, _groups in pictures),
                self.logits,
                device=self.trainer.global_rank,
                devices=self.trainer.world_size,
                add=lambda own: self.trainer.strategy.reduce(own, reduce_op="sum"),
            )

    def _moved(self, given: torch.Tensor | Activations) -> torch.Tensor | Activations:
        if isinstance(given, torch.Tensor):
            return given.to(self.device)
        return [tensor.to(self.device) for tensor in given]

    def on_validation_epoch_end(self) -> None:
        """Log the figures of all validation speakers together; with several corpora, their mean over corpora."""
        whole, labels = self.valid_confusion.compute().cpu().numpy(), self.net.classes
        self.valid_confusion.reset()
        blocks = [whole[first : first + labels, first : first + labels] for first in range(0, len(whole), labels)]
        found = [figures(block) for block in blocks if block.sum()]
        means = {f"valid_{name}": sum(getattr(one, name) for one in found) / len(found) for name in FIGURES}
        self.log_dict(means, sync_dist=True)  # computed over all devices already, so equal on each

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW with a rate for each layer, and its one-cycle schedule."""
        settings = self.settings
        parameters = dict(self.net.named_parameters())
        possible = trainable(self.net, settings.plan)
        groups: list[dict[str, Any]] = []
        for distance, names in enumerate(reversed(layers(self.net))):
            rate = settings.learning_rate * settings.layer_decay**distance
            for decays in (True, False):
                chosen = [
                    parameters[name] for name in names if name in possible and (parameters[name].ndim > 1) == decays
                ]
                if chosen:
                    weight_decay = settings.weight_decay if decays else 0.0
                    groups.append({"params": chosen, "lr": rate, "weight_decay": weight_decay})
        if self.tag is not None:
            groups.append({"params": self.tag.parameters(), "lr": settings.learning_rate, "weight_decay": 0.0})
        optimiser = torch.optim.AdamW(groups)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            max_lr=[group["lr"] for group in groups],
            total_steps=settings.epochs * self.trainer.datamodule.batches_per_epoch,  # type: ignore[attr-defined]
            pct_start=settings.warmup,
        )
        return OptimizerLRSchedulerConfig(
            optimizer=optimiser, lr_scheduler=LRSchedulerConfigType(scheduler=schedule, interval="step")
        )
