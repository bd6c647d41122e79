"""From a finished training to a checkpoint: its description, temperature and figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.optimize
import torch
from msgspec.structs import replace

from spectro.corpora.registry import find
from spectro.corpora.splits import CROSS_CORPUS, LEAKS, Part, full_names
from spectro.errors import TrainingError
from spectro.files import printable
from spectro.metrics import confusion, figures
from spectro.model import checkpoint as checkpoints
from spectro.model.backbones import SpectrogramNet, classifier_identity
from spectro.model.batch_norms import calibrate
from spectro.model.checkpoint import Checkpoint
from spectro.model.metadata import (
    DESCRIPTION_FILE,
    WEIGHTS_FILE,
    Description,
    Estimate,
    Figures,
    HeldOut,
    Source,
    Training,
    TrainingData,
)
from spectro.train.curves import plot_curves
from spectro.train.data import PictureDataModule
from spectro.train.module import Classifier, freeze
from spectro.train.settings import FinetuneSettings
from spectro.train.speech import learn, remembered
from spectro.train.state import read_state, unusable


def describe(
    settings: FinetuneSettings, data: PictureDataModule, net: SpectrogramNet, weights: str, identity: dict[str, Any]
) -> Description:
    """Return the checkpoint's description as far as it is known before training.

    Args:
        settings: the settings of the run.
        data: its pictures.
        net: its network.
        weights: the starting weights, for people.
        identity: everything that the result depends on, as JSON values.

    Raises:
        TrainingError: the estimate of its figures cannot be read.
        CheckpointError: the starting weights, or a teacher, are a checkpoint whose description is damaged.
    """
    corpora = [find(name) for name in data.corpora]
    split = HeldOut.of(data.split)
    tested = full_names(data.split.speakers["test"], data.corpora)
    before: set[str] = set()
    for heard, folders in (("the starting weights", [Path(settings.weights)]), ("the teachers", settings.teachers)):
        speakers = set().union(*map(_speakers_of, folders))
        before |= speakers
        if known := [name for name, full in tested.items() if full in speakers]:
            leak = f"{heard} were trained on the test speakers {', '.join(known)}"
            split = replace(split, leak="; ".join(filter(None, [split.leak, leak])))
    expected: list[Estimate] = []
    if settings.estimate is not None:
        expected = estimate(settings.estimate, settings.estimate_of, "+".join(data.corpora), settings.labels)
    return Checkpoint.of(
        net,
        labels=data.labels,
        spec=data.spec,
        heard_before=tuple(sorted(before)),
        estimate=tuple(expected),
        weights=weights,
        teachers=tuple(
            f"{'/'.join(folder.resolve().parts[-2:])} ({classifier_identity(str(folder))})"
            for folder in settings.teachers
        ),
        teacher_share=settings.teacher_share if settings.teachers else 0.0,
        data=TrainingData(
            title=", ".join(corpus.title for corpus in corpora),
            corpora=tuple(data.corpora),
            licence=", ".join(dict.fromkeys(corpus.licence for corpus in corpora)),
            homepage=", ".join(dict.fromkeys(corpus.homepage for corpus in corpora if corpus.homepage)),
            sources=tuple(
                Source(title=corpus.title, licence=corpus.licence, homepage=corpus.homepage) for corpus in corpora
            ),
            note=settings.note,
            scheme=settings.labels,
            training_pictures=len(data.rows["train"]),
        ),
        split=split,
        training=Training(seed=settings.seed, settings=identity),
        versions=checkpoints.versions(),
    ).about


def _speakers_of(weights: Path) -> set[str]:
    """Return the full names of the speakers that weights were trained on, if they are a checkpoint.

    Raises:
        CheckpointError: its description is damaged.
    """
    folder = weights.parent if weights.name == WEIGHTS_FILE else weights
    if not (folder / DESCRIPTION_FILE).is_file():
        return set()
    return Description.read(folder).training_speakers()


def finish(
    settings: FinetuneSettings,
    out: Path,
    data: PictureDataModule,
    model: Classifier,
    best: Path,
    about: Description,
) -> Checkpoint:
    """Load the best epoch's weights in their final number format, calibrate and measure them, and write the folder.

    Args:
        settings: the settings of the run.
        out: the checkpoint's folder.
        data: the pictures.
        model: the model that was trained.
        best: its state after the best epoch.
        about: its description, as far as it was known before training.

    Raises:
        TrainingError: the best epoch cannot be read, or gives numbers that are not finite.
    """
    state = read_state(best)
    try:
        model.load_state_dict(state["state_dict"])
    except RuntimeError as error:
        raise unusable(best, "it does not fit this run") from error
    net = model.net.cpu()
    freeze(net, settings.train, int(state["epoch"]))  # not done yet if a finished run is only written again
    calibrate(net, (pictures for pictures, *_rest in data.calibration_dataloader()))
    of_features, speech = net.add_feature_norm(), data.calibration_dataloader(sounds=False)
    calibrate(net, (pictures for pictures, *_rest in speech), norms=[of_features])
    of_features.keep()
    net.load_state_dict(checkpoints.kept(net, settings.dtype))
    net.eval()
    curves, epoch = pd.read_csv(out / "curves.csv"), int(state["epoch"])
    seconds = round(float(curves["seconds"].sum()), 1)
    measured: tuple[Part, ...] = ("valid", "test") if settings.test else ("valid",)
    loaders = {part: data.whole(part) for part in measured if len(data.rows[part])}
    predicted = {part: predict_part(net, loader, data.possible()) for part, loader in loaders.items()}
    detector, sounds = None, None
    if model.tag is not None:
        detector, sounds = remembered(net, model.tag.cpu(), data, settings.unheard_sounds, settings.seed)
    elif settings.sounds:
        detector, sounds = learn(net, data, settings.sounds, settings.seed)
    about = replace(
        about,
        temperature=fit_temperature(*predicted["valid"][:2]) if "valid" in predicted else settings.temperature,
        speech=detector,
        sounds=sounds,
        metrics={part: measure_corpora(*found, data.corpora) for part, found in predicted.items()},
        training=None if about.training is None else replace(about.training, epoch=epoch, seconds=seconds),
    )
    checkpoint = Checkpoint(net=net, about=about)
    checkpoints.save(checkpoint, out, dtype=settings.dtype)
    plot_curves(curves, epoch, out / "curves.png")
    return checkpoint


def estimate(path: Path, system: str, corpus: str, labels: str) -> list[Estimate]:
    """Return the figures of a study's system on new speakers, protocol by protocol.

    Args:
        path: the study's table.
        system: name of the system.
        corpus: names of the corpora, joined by +.
        labels: label scheme.

    Raises:
        TrainingError: the table cannot be read, has no figures of the system, or several configurations of a protocol.
    """
    try:
        table = pd.read_csv(path)
        honest = (~table["protocol"].isin(LEAKS)) & (table["transductive"].astype(str) != "True")
        measured = table[honest & table["test_uar"].notna() & (table["corpus"] == corpus) & (table["labels"] == labels)]
        rows = measured[measured["system"] == system]
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(f"{printable(path)}: is not a table of a study ({error})") from error
    if not len(rows):
        known = ", ".join(dict.fromkeys(measured["system"].astype(str))) or "none"
        raise TrainingError(
            f"{printable(path)}: has no test figures of {system!r} on {corpus} for {labels}; it has those of: {known}"
        )
    found: list[Estimate] = []
    for protocol, own in rows.groupby("protocol", sort=False):
        if own["config"].nunique() > 1:
            raise TrainingError(f"{printable(path)}: has several configurations of {system} under {protocol}")
        by_fold = own.groupby("fold")["test_uar"].mean().round(4) if protocol == CROSS_CORPUS else pd.Series()
        found.append(
            Estimate(
                table=path.name,
                system=system,
                protocol=str(protocol),
                folds=int(own["fold"].nunique()),
                seeds=int(own["seed"].nunique()),
                runs=len(own),
                uar=round(float(own["test_uar"].mean()), 4),
                lowest=round(float(own["test_uar"].min()), 4),
                highest=round(float(own["test_uar"].max()), 4),
                by_corpus={str(name): float(uar) for name, uar in by_fold.items()},
            )
        )
    return found


@torch.inference_mode()
def predict_part(
    net: SpectrogramNet, loader: Any, possible: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the logits of a network for a part, in float32 arithmetic.

    Args:
        net: the network.
        loader: batches of pictures, targets and groups.
        possible: the labels of each group, bool of shape (groups, labels); other logits become minus infinity.

    Returns:
        logits float32 (clips, labels), targets int64 (clips,) and groups int64 (clips,).
    """
    found = [(net(pictures), targets, groups) for pictures, targets, groups in loader]
    logits, targets, groups = (torch.cat(parts) for parts in zip(*found, strict=True))
    _check_finite(logits)
    return logits.masked_fill(~possible[groups], -torch.inf), targets, groups


def measure_corpora(
    logits: torch.Tensor, targets: torch.Tensor, groups: torch.Tensor, corpora: Sequence[str]
) -> Figures:
    """Return the figures of a part, as `measure`; for several corpora the means, with each corpus's in `corpora`."""
    own = {
        corpora[group]: measure(logits[groups == group], targets[groups == group])
        for group in sorted(set(groups.tolist()))
    }
    if len(own) == 1:
        return next(iter(own.values()))
    means = {
        name: round(float(np.mean([getattr(one, name) for one in own.values()])), 4) for name in ("uar", "wa", "f1")
    }
    return Figures(clips=len(targets), **means, corpora=own)


def measure(logits: torch.Tensor, targets: torch.Tensor) -> Figures:
    """Return the figures of logits.

    Raises:
        TrainingError: a logit is not finite.
    """
    _check_finite(logits)
    found = figures(confusion(targets.numpy(), logits.argmax(1).numpy(), logits.shape[1]))
    return Figures(clips=len(targets), uar=round(found.uar, 4), wa=round(found.wa, 4), f1=round(found.f1, 4))


def fit_temperature(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the temperature that maximises the likelihood of the targets, between 0.05 and 20.

    Source: Guo et al., On calibration of modern neural networks, ICML 2017.

    Raises:
        TrainingError: a logit is not finite.
    """
    _check_finite(logits)

    def loss(log_temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits.double() / np.exp(log_temperature), targets))

    fitted = scipy.optimize.minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return round(float(np.exp(fitted.x)), 4)


def _check_finite(logits: torch.Tensor) -> None:
    if bool(torch.isnan(logits).any() | torch.isposinf(logits).any()):
        raise TrainingError(
            "the network answers with numbers that are not finite (NaN or infinite), so there is nothing to measure; "
            "train it again with a lower --train.learning_rate, or with --dtype float32 --precision 32-true"
        )
