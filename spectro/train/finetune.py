"""Fine-tuning: from an image index and a backbone to a checkpoint folder.

The epoch is chosen on validation speakers; test speakers are evaluated once, at the end. A run can be killed at any
moment and started again with the same settings: it resumes from the last complete epoch and ends with the same weights.

The output folder holds the checkpoint (`model.safetensors`, `spectro.json`, `card.md`), `curves.csv` and `curves.png`,
and `training/` with the state for resuming and TensorBoard's events.
"""

import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only

from spectro.corpora.splits import natural, pictures_fingerprint
from spectro.errors import TrainingError
from spectro.files import held, printable, read_json, remove_leftovers, write_json
from spectro.identity import identity_of
from spectro.model.backbones import SpectrogramNet, classifier_identity, load_weights, network_of, weights_identity
from spectro.model.checkpoint import Checkpoint
from spectro.model.folded import unfold
from spectro.model.metadata import CARD_FILE, DESCRIPTION_FILE, WEIGHTS_FILE
from spectro.model.pretrained import PRETRAINED
from spectro.outputs import check_ours
from spectro.train.curves import Curves
from spectro.train.data import PictureDataModule
from spectro.train.finish import describe, finish
from spectro.train.heads import keep_head
from spectro.train.module import Classifier
from spectro.train.settings import FinetuneSettings
from spectro.train.speech import read_sounds
from spectro.train.state import read_state, rows_of, unusable
from spectro.train.tags import check_tags, second_output, tags
from spectro.train.teachers import ask, check_teachers
from spectro.train.trainer import BEST, LAST, TRAINING, make_trainer, silence

RUN_FILE, LOCK = "settings.json", ".lock"
UNFOLDING_PICTURES = 128


def finetune(settings: FinetuneSettings) -> Checkpoint:
    """Fine-tune a backbone, and write its checkpoint folder.

    Returns:
        the checkpoint of the epoch that is best on the validation speakers, or of the last epoch if there are none.

    Raises:
        TrainingError: the output folder holds another run, or one writes there, or its state cannot be read; or the
            settings contradict each other; or a teacher is not usable; or the training loss is no longer finite.
        RenderError, CorpusError, WeightsError: the pictures, labels, split or weights are not usable.
    """
    out = settings.folder
    data = _data(settings)
    rank_zero_only(print)(data.tally, file=sys.stderr)
    pl.seed_everything(settings.seed, verbose=False)
    backbone = network_of(settings.backbone, settings.weights)
    net = SpectrogramNet(backbone, len(data.labels), hidden=settings.hidden, dropout=settings.dropout)
    net.check_pictures(data.spec)
    check_teachers(settings.teachers, data, settings.labels)
    sounds = read_sounds(settings.sounds, data.spec) if settings.sounds else None
    if settings.remember:
        check_tags(settings.weights, settings.hidden, sounds is not None)
    with warnings.catch_warnings():
        silence()
        curves = Curves(out)
        trainer = make_trainer(settings, out, curves)
        with _alone(out, first=trainer.is_global_zero):  # before the folder is read
            weights = load_weights(net, settings.weights, data.spec)
            if settings.keep_head:
                keep_head(net, data.labels, settings.weights)
            identity = run_identity(settings, data, net, sounds)
            resume = _find_run(out, identity, settings.overwrite)
            _check_folder(settings)
            if resume is None and settings.weights in PRETRAINED and PRETRAINED[settings.weights].folded:
                unfold(net, torch.cat([one for one, *_ in data.calibration_dataloader(UNFOLDING_PICTURES)]))
            about = describe(settings, data, net, weights, identity)
            net.to(memory_format=torch.channels_last)
            model = Classifier(
                net,
                settings.train,
                settings.seed,
                class_weights=data.class_weights(),
                prior=_with_sounds(data.prior(), settings),
                possible=_with_sounds(data.possible(), settings),
                unaltered=not (
                    settings.mask
                    or settings.conditions.probability
                    or settings.train.mixup
                    or settings.train.cutmix
                    or settings.remember
                ),
                tag=second_output(net.features) if settings.remember else None,
                remember=settings.remember,
            )
            resumed = resume is not None
            answers = ask(settings.teachers, data, out / TRAINING, resumed=resumed) if settings.teachers else None
            if resume is None and trainer.is_global_zero:
                shutil.rmtree(out / TRAINING, ignore_errors=True)
                write_json(out / TRAINING / RUN_FILE, identity)
            if answers is not None:
                answers.keep(out / TRAINING)
                data.learn_from(answers.probabilities, settings.teacher_share)
            if settings.remember and sounds is not None:
                data.hear(sounds, tags(settings.weights, sounds, data.spec, out / TRAINING))
            _fit(trainer, model, data, resume, curves)
            data.drop_activations()
            if not trainer.is_global_zero:
                return Checkpoint(net=net, about=about)
            return finish(settings, out, data, model, out / TRAINING / BEST, about)


@contextmanager
def _alone(out: Path, *, first: bool) -> Iterator[None]:
    """Lock the output folder while the block runs, and remove half-written files that killed runs left.

    The first of a run's processes holds the lock for all of them: the others wait for it when training starts.

    Raises:
        TrainingError: another run writes there.
    """
    if not first:
        yield
        return
    with held(out / LOCK) as free:
        if not free:
            raise TrainingError(f"{printable(out)}: another run writes there; wait, or name another --out")
        for folder in (out, out / TRAINING):
            remove_leftovers(folder)
        yield


def _fit(trainer: pl.Trainer, model: Classifier, data: PictureDataModule, resume: Path | None, curves: Curves) -> None:
    if resume is not None:
        data.first_epoch = len(rows_of(read_state(resume)))
    try:
        trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
    except SystemExit as error:
        raise KeyboardInterrupt from error  # Lightning exits when it is interrupted
    except torch.OutOfMemoryError:
        raise  # not caused by the state
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if resume is None or curves.begun:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise unusable(resume, f"it does not fit this run: {reason}") from error


def _with_sounds(of_corpora: torch.Tensor | None, settings: FinetuneSettings) -> torch.Tensor | None:
    """Return a tensor of shape (corpora, labels), with a row of zeros for sounds if they are trained on."""
    if of_corpora is None or not settings.remember:
        return of_corpora
    return torch.nn.functional.pad(of_corpora, (0, 0, 0, 1))


def _data(settings: FinetuneSettings) -> PictureDataModule:
    workers = settings.workers if settings.workers >= 0 else min(4, (torch.get_num_threads() + 1) // 4)
    return PictureDataModule(
        *settings.indexes,
        label_scheme=settings.labels,
        protocol=settings.protocol,
        fold=settings.fold,
        valid_speakers=[str(name) for name in settings.valid_speakers],
        batch_size=settings.batch_size,
        copies=settings.copies,
        balance=settings.balance,
        masking=settings.masking if settings.mask else None,
        conditions=settings.conditions,
        seed=settings.seed,
        workers=workers,
        train_on=settings.train_on,
        temperature=settings.corpus_temperature,
        clips=settings.epoch_clips,
        votes=settings.votes,
    )


def run_identity(
    settings: FinetuneSettings, data: PictureDataModule, net: SpectrogramNet, sounds: pd.DataFrame | None = None
) -> dict[str, Any]:
    """Return everything that a run's result depends on, as JSON values: a run is resumed if these are the same.

    Args:
        settings: the run's settings.
        data: its pictures.
        net: its network, with its starting weights. `turned` is included only if true: older runs do not have it.
        sounds: sounds without speech, which are included only if the weights depend on them.
    """
    free = {
        *("out", "overwrite", "workers", "index", "devices", "nodes", "accelerator", "strategy"),
        *("estimate", "estimate_of", "test", "sounds", "unheard_sounds", "note"),  # used once the weights are final
        *("teachers", "teacher_share"),  # see below
        *(("temperature",) if settings.validates else ()),  # it is fitted then
    }
    identity = identity_of(settings, free)
    if settings.valid_speakers:
        identity["valid_speakers"] = natural(map(str, settings.valid_speakers))
    identity["weights"] = weights_identity(settings.weights)
    if settings.teachers:
        identity["teachers"] = [classifier_identity(str(folder)) for folder in settings.teachers]
        identity["teacher_share"] = settings.teacher_share
    if sounds is not None and settings.remember:
        identity["sounds"] = pictures_fingerprint(sounds)
    identity |= {"turned": True} if net.turned else {}
    return identity | {"spec": data.spec.fingerprint, **data.identity}


def _weights_of(identity: Any) -> Any:
    """Return the part of a run's identity that determines its weights: all but the temperature, set later."""
    return {k: v for k, v in identity.items() if k != "temperature"} if isinstance(identity, dict) else identity


def _check_folder(settings: FinetuneSettings) -> None:
    """Refuse to overwrite inputs, or files that no run of ours made, such as other weights or a folder of our name."""
    out, weights = settings.folder, Path(settings.weights)
    known = (out / TRAINING / RUN_FILE).exists() or (out / DESCRIPTION_FILE).exists()
    names = (WEIGHTS_FILE, CARD_FILE, "curves.csv", "curves.png", TRAINING)
    read = [weights, *settings.teachers]
    inputs = [*settings.indexes, *read, *(folder / WEIGHTS_FILE for folder in read)]
    check_ours([out / name for name in names], error=TrainingError, inputs=inputs, known=known)


def _find_run(out: Path, identity: dict[str, Any], overwrite: bool) -> Path | None:
    """Return the state to resume from, or None if the folder holds none of this run; refuse to mix two runs."""
    path, last = out / TRAINING / RUN_FILE, out / TRAINING / LAST
    if last.exists() and _weights_of(read_json(path)) == _weights_of(identity):
        try:
            for name in (LAST, BEST):
                read_state(out / TRAINING / name)
        except TrainingError:
            if not overwrite:
                raise
            return None
        return last
    if not overwrite and (last.exists() or (out / DESCRIPTION_FILE).exists()):
        raise TrainingError(
            f"{printable(out)}: holds a run with other settings; choose another --out, or --overwrite true"
        )
    return None
