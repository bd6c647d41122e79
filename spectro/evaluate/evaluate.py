"""Evaluate a checkpoint on held-out speakers, in figures and plots."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from tqdm import tqdm

from spectro.corpora.labels import label_clips
from spectro.corpora.splits import LEAKS, Part, data_fingerprint, full_names, natural, speaker_names, split, voices
from spectro.engines.base import Probabilities, batch
from spectro.errors import EvaluationError
from spectro.evaluate import plots
from spectro.evaluate.report import (
    ADAPTED_FILE,
    REPORT_FILES,
    clip_columns,
    clip_ms,
    figures_of,
    is_report,
    probabilities_in,
    with_probabilities,
    without_temperature,
    write_predictions,
    write_report,
)
from spectro.files import printable, quoted
from spectro.model import batch_norms
from spectro.model.locate import default_checkpoint
from spectro.model.metadata import Description
from spectro.outputs import LOCK, claimed
from spectro.picture import png
from spectro.predict.batches import predict_rows
from spectro.predict.predictor import Predictor
from spectro.rendering.index import read_index
from spectro.schema import check_least


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Evaluate a checkpoint on rendered pictures: UAR, WA and F1 with intervals, by label, speaker and gender.

    Writes metrics.json, predictions.csv, confusion.png, recall.png, reliability.png and gallery.png.

    Args:
        checkpoint: checkpoint folder; null for the shipped checkpoint.
        index: folder of a rendering with the checkpoint's spec.
        part: test or valid: the speakers held out by the checkpoint's own split; all: every untouched clip, for another
            corpus. The report lists speakers that the network was trained on.
        out: folder for the report; null for CHECKPOINT/evaluation-PART.
        answers: any: predict any label of the checkpoint; corpus: predict only labels that the clip's corpus has, the
            usual way to report figures on foreign corpora. The report states which.
        transductive: also report, separately, the network after its batch norms and features are adapted to all clips
            of each speaker, without labels. Compare these figures only with other transductive ones.
        rounds: number of bootstrap samples.
        seed: seed of the bootstrap.
        batch_size: pictures per batch.
        device: cpu, cuda, ...; null uses a GPU if available.
    """

    checkpoint: Path | None = None
    index: Path = Path("data/images/synthetic")
    part: Literal["test", "valid", "all"] = "test"
    out: Path | None = None
    answers: Literal["any", "corpus"] = "any"
    transductive: bool = False
    rounds: int = 1000
    seed: int = 0
    batch_size: int = 32
    device: str | None = None

    def __post_init__(self) -> None:
        check_least(self, EvaluationError, rounds=1, seed=0, batch_size=1)

    @property
    def checkpoint_folder(self) -> Path:
        """The checkpoint to evaluate."""
        return self.checkpoint or default_checkpoint()

    @property
    def folder(self) -> Path:
        """The folder that the report is written to."""
        return self.out or self.checkpoint_folder / f"evaluation-{self.part}"


def evaluate(settings: EvaluateSettings) -> dict[str, Any]:
    """Evaluate a checkpoint and write the report.

    Returns:
        the content of `metrics.json`.

    Raises:
        EvaluationError: the pictures have another spec, or the index has no clip to evaluate on; or the output folder
            holds other files with these names, or another run is writing there.
        CheckpointError, RenderError: the checkpoint or the index cannot be read.
    """
    out = settings.folder
    files = [out / name for name in REPORT_FILES]
    with claimed(files, lock=out / LOCK, error=EvaluationError, known=is_report(out)):
        return _evaluate(settings)


def _evaluate(settings: EvaluateSettings) -> dict[str, Any]:
    folder, out = settings.checkpoint_folder, settings.folder
    predictor = Predictor(folder, device=settings.device, engine="torch")
    checkpoint = predictor.checkpoint
    index, spec = read_index(settings.index)
    if spec.fingerprint != checkpoint.spec.fingerprint:
        raise EvaluationError(
            f"{printable(settings.index)}: was rendered with spec {spec.fingerprint}, the checkpoint needs "
            f"{checkpoint.spec.fingerprint}; render with --spec {printable(folder)}/spectro.json"
        )
    clips, labels_of = _clips(index, checkpoint, settings.part)
    if settings.transductive:
        _check_transductive(predictor, clips)
    paths = [settings.index / name for name in clips["image"]]
    possible = np.array([[label in labels_of[corpus] for label in predictor.labels] for corpus in clips["corpus"]])
    if settings.answers != "corpus":
        possible[:] = True
    predicted = _predict(predictor, settings, clips, paths, possible)
    conditions = _describe(folder, checkpoint, clips, settings)
    conditions |= {"clip_ms": clip_ms(predictor.predict_wav, clips["path"]), "temperature": checkpoint.temperature}
    if settings.transductive:
        speakers = speaker_names(clips).to_numpy(str)
        adapted = _among(adapted_probabilities(predictor, paths, speakers, settings.batch_size), possible)
        table = with_probabilities(clip_columns(clips), predictor.labels, adapted)
        write_predictions(out / ADAPTED_FILE, table)
        adapts = batch_norms.statistics(predictor.torch_engine.net)
        found = figures_of(table, predictor.labels, settings.rounds, settings.seed)
        conditions["transductive"] = found | {"adapted_statistics": adapts}
    report = write_report(
        out,
        conditions,
        predicted,
        predictor.labels,
        untempered=without_temperature(probabilities_in(predicted, predictor.labels), checkpoint.temperature),
        rounds=settings.rounds,
        seed=settings.seed,
    )
    plots.gallery(report, predicted, paths, out / "gallery.png")
    return report


def _check_transductive(predictor: Predictor, clips: pd.DataFrame) -> None:
    if clips["speaker"].isna().any():
        raise EvaluationError(
            "transductive figures need every clip's speaker, and some clips have none; leave --transductive out"
        )
    if not batch_norms.adaptable(predictor.torch_engine.net):
        raise EvaluationError(
            f"the network {quoted(predictor.checkpoint.backbone)} has no batch norms, and the checkpoint no statistics "
            "of its features, so there is nothing to adapt: train it again, or leave --transductive out"
        )


def _clips(
    index: pd.DataFrame, checkpoint: Description, part: Part | Literal["all"]
) -> tuple[pd.DataFrame, dict[str, set[str]]]:
    """Return the clips of a part whose label the checkpoint has, and the labels of each corpus, whatever the part."""
    data, own = checkpoint.data, checkpoint.split
    if data is None or own is None:
        raise EvaluationError("the checkpoint does not record its data and split, so no clip is known to be unseen")
    labelled, _labels = label_clips(index, data.scheme)
    labels_of = {str(corpus): set(labels) for corpus, labels in labelled.groupby("corpus")["label"]}
    if part != "all":
        if not set(labelled["corpus"]) <= set(data.corpora):
            raise EvaluationError(
                f"the checkpoint's split is of {', '.join(data.corpora)}, these clips are from "
                f"{', '.join(sorted(set(labelled['corpus'])))}: evaluate on all of them with --part all"
            )
        if not own.speakers[part]:
            raise EvaluationError(
                f"the checkpoint was also trained on the {part} speakers, so none are held out; choose another "
                "--checkpoint, or an --index of a corpus that it was not trained on"
            )
        if own.protocol in LEAKS:
            found = split(labelled, own.protocol, own.fold)
            found = found if own.speakers["valid"] else found.without_validation()
            if data_fingerprint(labelled, found) != _trained_on(checkpoint):
                raise EvaluationError(
                    f"the checkpoint was trained on random clips ({own.protocol}) of another rendering: pass that "
                    "rendering as --index, the only one whose held-out clips are known"
                )
            labelled = labelled[labelled["clip_id"].map(found.part) == part]
        else:
            wanted = set(full_names(own.speakers[part], data.corpora).values())
            labelled = labelled[_full_names(labelled).isin(wanted)]
    labelled = labelled[(labelled["copy"] == 0) & labelled["label"].isin(checkpoint.labels)]
    if not len(labelled):
        raise EvaluationError(f"the index has no clip of the {part} speakers with a label of this checkpoint")
    return labelled.reset_index(drop=True), labels_of


def _full_names(clips: pd.DataFrame) -> "pd.Series[str]":
    """Return the speakers' names prefixed with their corpus, even if all clips are from one corpus."""
    return clips["corpus"].map(voices) + "/" + clips["speaker"]


def _among(probabilities: Probabilities, possible: npt.NDArray[np.bool_]) -> Probabilities:
    """Return probabilities renormalised over each clip's possible labels, bool of the same shape."""
    if possible.all():
        return probabilities
    kept = probabilities * possible
    among: Probabilities = kept / kept.sum(axis=1, keepdims=True)
    return among


def _trained_on(checkpoint: Description) -> str | None:
    """Return the fingerprint of the data that a checkpoint was trained on; None if not recorded."""
    return checkpoint.training.setting("data") if checkpoint.training else None


def _predict(
    predictor: Predictor,
    settings: EvaluateSettings,
    clips: pd.DataFrame,
    paths: list[Path],
    possible: npt.NDArray[np.bool_],
) -> pd.DataFrame:
    rows = predict_rows(predictor, paths, batch_size=settings.batch_size)
    found = list(tqdm(rows, total=len(paths), desc="evaluating", unit="clip"))
    broken = [row for row in found if row.error]
    if broken:
        raise EvaluationError(f"{broken[0].path}: {broken[0].error}; render again")
    probabilities = np.array([[row.probabilities[label] for label in predictor.labels] for row in found])
    return with_probabilities(clip_columns(clips), predictor.labels, _among(probabilities, possible))


def adapted_probabilities(
    predictor: Predictor, pictures: list[Path], speakers: npt.NDArray[np.str_], batch_size: int
) -> Probabilities:
    """Return probabilities of a network that is adapted to all pictures of each speaker; see `adapt_to_voice`.

    For a speaker with a single clip, nothing can be estimated and the network is used unchanged.

    Args:
        predictor: the network; it is not modified.
        pictures: PNGs.
        speakers: speaker of each picture.
        batch_size: minimum number of pictures per batch; a batch has at most twice as many.

    Returns:
        float64 of shape (pictures, labels).

    Raises:
        EvaluationError: the probabilities are not finite.
    """
    engine, checkpoint = predictor.torch_engine, predictor.checkpoint
    probabilities = np.zeros((len(pictures), len(predictor.labels)))
    for speaker in natural(set(speakers.tolist())):
        own = np.flatnonzero(speakers == speaker)
        parts = [own[list(part)] for part in batch_norms.strided(len(own), batch_size)]
        shown = [batch([png.read(pictures[place], checkpoint.spec).pixels for place in part]) for part in parts]
        net = copy.deepcopy(engine.net)
        with torch.inference_mode():
            if len(own) > 1:
                batch_norms.adapt_to_voice(net, [engine.tensor(one) for one in shown])
            for part, one in zip(parts, shown, strict=True):
                probabilities[part] = checkpoint.probabilities(net(engine.tensor(one)).float().cpu().numpy())
    if not np.isfinite(probabilities).all():
        raise EvaluationError(
            "the network's output is not finite after it is adapted to a speaker's clips; leave --transductive out"
        )
    return probabilities


def _describe(folder: Path, checkpoint: Description, clips: pd.DataFrame, settings: EvaluateSettings) -> dict[str, Any]:
    """Return the conditions of the evaluation, and whatever makes its figures too good."""
    own, trained = checkpoint.split, checkpoint.training_speakers()
    assert own is not None  # `_clips` needs it
    names = full_names(set(speaker_names(clips).dropna()) - {""}, set(clips["corpus"]))
    known = [] if settings.part == "valid" else natural(name for name, full in names.items() if full in trained)
    return {
        "checkpoint": folder.name,
        "corpora": sorted(set(clips["corpus"])),
        "part": settings.part,
        "protocol": own.protocol,
        "fold": own.fold,
        "leak": own.leak,
        **({"answers": settings.answers} if settings.answers != "any" else {}),
        "speakers_heard_in_training": known,
        **({"adapted_to_recordings": checkpoint.adapted.recordings} if checkpoint.adapted else {}),
    }
