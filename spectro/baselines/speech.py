"""wav2vec 2.0, WavLM, HuBERT and the Audio Spectrogram Transformer, through transformers (extra `speech`).

Frozen, such a network is a kind of feature (`embed`); `classical` adds a linear head (`logistic`) or one with a hidden
layer (`mlp`). The verb `speech` fine-tunes the whole network, with transformers' own trainer, on the waveforms that the
pictures of a rendering were made from; the epoch is chosen on validation speakers. Networks are read from the hub or
from a local folder, safetensors first; without safetensors, PyTorch reads only tensors from the file.
"""

import json
import math
import pickle
import shutil
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import soxr
from msgspec import Struct
from safetensors import SafetensorError, safe_open
from scipy.special import softmax

from spectro.audio import augment
from spectro.audio.augment import AugmentSettings
from spectro.audio.recording import Waveform
from spectro.baselines.results import Clips, report, run_folder, write_run
from spectro.corpora.splits import PARTS, Part
from spectro.errors import FeatureError, TrainingError, WeightsError
from spectro.files import printable, read_foreign_json, read_json, write_bytes, write_json
from spectro.identity import identity_of
from spectro.metrics import confusion, figures
from spectro.model.metadata import Result, Training
from spectro.picture import spectrogram
from spectro.rendering.index import SETTINGS, read_index
from spectro.schema import Text, check_least, typed
from spectro.train.state import unusable

MODEL, TRAINING, SETTINGS_FILE, LOCK = "model", "training", "settings.json", ".lock"
STATE_FILE = "trainer_state.json"
WARMUP = 0.1
SHORTEST_S = 0.1
"""Shorter clips are padded with silence: wav2vec 2.0's convolutions need 25 ms."""


@dataclass(frozen=True, kw_only=True)
class SpeechSettings:
    """Fine-tune a speech network (wav2vec 2.0, WavLM, HuBERT, AST) on clips, with whole speakers held out.

    Needs the extra `speech`. Run it again after an interruption: it continues from the last complete epoch. Writes the
    network to model/, and run.json, evaluation-test/ and evaluation-valid/ as `evaluate` does.

    Args:
        index: folder of a rendering; its recordings must still be in place.
        model: a name on the Hugging Face hub, such as facebook/wav2vec2-base, or a local folder.
        out: folder for the results; null for checkpoints/speech-NAME_OF_INDEX-foldN.
        labels: label scheme: emotion, emotion5, valence, gender, emotion-gender, emotion5-gender.
        protocol: how speakers are split: luna-jimenez, emobox (both for RAVDESS), group-kfold or loso; random-leaky
            mixes speakers, as tutorials do, and reports it.
        fold: fold of the protocol, from 0.
        copies: all: also train on the augmented copies of training clips; none: untouched clips only.
        epochs: passes over the training clips.
        learning_rate: peak learning rate, reached after a tenth of the run and then decayed linearly to zero.
        batch_size: clips per batch.
        freeze_encoder: freeze the convolutional feature encoder, if the network has one.
        max_s: maximum clip length in seconds; longer clips are cut to their middle.
        seed: random seed.
        test: evaluate on the test speakers; use false while comparing designs.
        overwrite: start again over a run with other settings, instead of refusing.
    """

    index: Path = Path("data/images/synthetic")
    model: str = "facebook/wav2vec2-base"
    out: Path | None = None
    labels: str = "emotion"
    protocol: str = "group-kfold"
    fold: int = 0
    copies: Literal["none", "all"] = "none"
    epochs: int = 10
    learning_rate: float = 5e-5
    batch_size: int = 8
    freeze_encoder: bool = True
    max_s: float = 10.0
    seed: int = 0
    test: bool = True
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_least(self, TrainingError, epochs=1, batch_size=1, seed=0)
        if not (self.learning_rate > 0 and self.max_s > 0):
            raise TrainingError("learning_rate and max_s must be positive")

    @property
    def folder(self) -> Path:
        """The folder that the results are written to."""
        return self.out or Path("checkpoints") / f"speech-{self.index.name}-fold{self.fold}"


def embed(samples: Waveform, sample_rate: int, model: str, layer: int) -> tuple[npt.NDArray[np.float32], list[str]]:
    """Return a hidden layer of a frozen network, averaged over its frames: float32 of shape (features,), and names.

    The Audio Spectrogram Transformer's frames are the patches of its spectrogram and its two class tokens.

    Args:
        samples: float32 array of shape (samples,).
        sample_rate: in Hz; samples are resampled to the network's own rate.
        model: a name on the hub, or a local folder.
        layer: -1 for the last, 0 for the input of the first.

    Raises:
        FeatureError: transformers is not installed, or the network has no such layer.
        WeightsError: the network is not available.
    """
    import torch

    extractor, net = _frozen(model)
    with torch.inference_mode():
        hidden = net(**_inputs(extractor, [samples], sample_rate), output_hidden_states=True).hidden_states
    if not -len(hidden) <= layer < len(hidden):
        raise FeatureError(f"{model} has layers 0 to {len(hidden) - 1}, but layer is {layer}")
    vector = hidden[layer][0].mean(0).numpy().astype(np.float32)
    return vector, [f"hidden{number}" for number in range(len(vector))]


def model_identity(model: str) -> str:
    """Return an identifier of a network: its name on the hub, or the checksum of a folder's weights."""
    if not Path(model).is_dir():
        return model
    from spectro.model.backbones import weights_identity

    return weights_identity(model)


@lru_cache(maxsize=1)
def _frozen(model: str) -> tuple[Any, Any]:
    extractor, net = load(model, "AutoModel")
    return extractor, net.eval()


def load(model: str, kind: str, **options: Any) -> tuple[Any, Any]:
    """Return a feature extractor of transformers and its network.

    Args:
        model: a name on the hub, or a local folder.
        kind: class of transformers that loads the network, such as `AutoModel`.
        options: further options of its `from_pretrained`.

    Raises:
        FeatureError: transformers is not installed.
        WeightsError: the network cannot be fetched or read.
    """
    try:
        import transformers
    except ImportError as error:
        raise FeatureError("speech networks need transformers: pip install 'spectro[speech]'") from error
    transformers.logging.set_verbosity_error()
    if len(Path(model).parts) > 2 and not Path(model).is_dir():
        raise WeightsError(f"{model}: is neither a folder nor a name on the hub (OWNER/NAME)")
    try:
        extractor = transformers.AutoFeatureExtractor.from_pretrained(model)
        return extractor, getattr(transformers, kind).from_pretrained(model, **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"{model}: the network cannot be loaded ({reason}); name a folder that holds one, or one on the hub "
            "that this machine can reach"
        ) from error


def _inputs(extractor: Any, clips: list[Waveform], sample_rate: int) -> Any:
    """Return a network's input for waveforms, padded to one length."""
    own = int(extractor.sampling_rate)
    clips = [np.pad(one, (0, max(0, round(SHORTEST_S * sample_rate) - len(one)))) for one in clips]
    resampled = [soxr.resample(one, sample_rate, own, quality="HQ") if own != sample_rate else one for one in clips]
    padding = "max_length" if hasattr(extractor, "max_length") else True  # AST needs inputs of one size
    return extractor(resampled, sampling_rate=own, padding=padding, return_tensors="pt")


class _Waveforms:
    """Rows of an index as (waveform, target), read on demand."""

    def __init__(self, folder: Path, rows: pd.DataFrame, max_s: float) -> None:
        _index, self.spec = read_index(folder)
        self._augmentation = AugmentSettings(**read_json(folder / SETTINGS)["augment"])
        self._rows, self._max_s = rows, max_s

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> tuple[Waveform, int]:
        row = self._rows.iloc[place]
        samples = spectrogram.read(str(row["path"]), self.spec, max_duration_s=None)
        if row["copy"]:
            drawn = augment.sample(self._augmentation, str(row["clip_id"]), int(row["copy"]))
            samples = augment.apply(samples, self.spec.sample_rate, drawn)
        return _middle(samples, self.spec.sample_rate, self._max_s), int(row["target"])


def _middle(samples: Waveform, sample_rate: int, max_s: float) -> Waveform:
    count = round(max_s * sample_rate)
    start = max(0, (len(samples) - count) // 2)
    return samples[start : start + count]


def finetune(settings: SpeechSettings) -> Result:
    """Fine-tune a network, and write it and its results.

    Returns:
        the content of `run.json`.

    Raises:
        TrainingError: the output folder holds another run or other files, another run is writing there, or the saved
            state of this run cannot be read.
        FeatureError, WeightsError: transformers or the network is not available.
        RenderError, CorpusError: the rendering, labels or split are not available.
    """
    begun = read_json(settings.folder / TRAINING / SETTINGS_FILE) is not None
    with run_folder(settings.folder, (MODEL, TRAINING), begun=begun):
        return _finetune(settings)


def _finetune(settings: SpeechSettings) -> Result:
    import torch

    index, spec = read_index(settings.index)
    clips = Clips.of(index, settings.labels, settings.protocol, settings.fold)
    out, identity = settings.folder, _identity(settings, clips, spec.fingerprint)
    _check_run(out, identity, settings.overwrite)
    names = dict(enumerate(clips.labels))
    torch.manual_seed(settings.seed)  # for the head, which is not pretrained
    extractor, net = load(
        settings.model,
        "AutoModelForAudioClassification",
        num_labels=len(names),
        id2label=names,
        label2id={name: number for number, name in names.items()},
        ignore_mismatched_sizes=True,
    )
    if settings.freeze_encoder and hasattr(net, "freeze_feature_encoder"):
        net.freeze_feature_encoder()
    waveforms = {
        part: _Waveforms(
            settings.index,
            clips.rows.iloc[clips.part(part, copies=part == "train" and settings.copies == "all")],
            settings.max_s,
        )
        for part in PARTS
    }
    trainer = _trainer(settings, net, extractor, waveforms, spec.sample_rate)
    write_json(out / TRAINING / SETTINGS_FILE, identity)
    epoch, seconds = _train(trainer, out / TRAINING)
    net.save_pretrained(out / MODEL)
    extractor.save_pretrained(out / MODEL)

    def classify(path: Path) -> Any:
        samples = spectrogram.read(path, spec, max_duration_s=None)
        inputs = _inputs(extractor, [_middle(samples, spec.sample_rate, settings.max_s)], spec.sample_rate)
        with torch.inference_mode():
            return net(**inputs.to(net.device)).logits.argmax(-1)

    reports: dict[Part, dict[str, Any]] = {}
    for part in PARTS[1:] if settings.test else PARTS[1:2]:
        logits = np.asarray(trainer.predict(waveforms[part]).predictions, dtype=np.float64)
        net.eval()
        reports[part] = report(out, part, clips, logits.argmax(1), softmax(logits, axis=1), classify)
    return write_run(
        out,
        clips,
        reports,
        Training(epoch=epoch, seconds=seconds, settings=identity),
        backbone=settings.model,
        parameters=sum(one.numel() for one in net.parameters()),
    )


def _identity(settings: SpeechSettings, clips: Clips, spec: str) -> dict[str, Any]:
    """Return the settings and data that a run's result depends on, as JSON values."""
    identity = identity_of(settings, ("out", "index", "test", "overwrite"))
    return identity | {"model": model_identity(settings.model), "spec": spec, "data": clips.fingerprint}


def _check_run(out: Path, identity: dict[str, Any], overwrite: bool) -> None:
    """Refuse to mix two runs, or to continue from an invalid state; delete the old state if a run starts again."""
    before = read_json(out / TRAINING / SETTINGS_FILE)
    if before == identity:
        try:
            for saved in _saved(out / TRAINING):
                _check_saved(saved)
            return
        except TrainingError:
            if not overwrite:
                raise
    if before is not None and not overwrite:
        raise TrainingError(
            f"{printable(out)}: holds a run with other settings; choose another --out, or --overwrite true"
        )
    shutil.rmtree(out / TRAINING, ignore_errors=True)


def _trainer(
    settings: SpeechSettings, net: Any, extractor: Any, waveforms: dict[Part, _Waveforms], sample_rate: int
) -> Any:
    """Return transformers' trainer, which keeps the best epoch on the validation speakers."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Record each epoch's seconds in the state that resuming restores, and whether a step has begun."""

        begun = False

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begun = True

        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_epoch_end(self, _arguments: Any, state: Any, *_: Any, **__: Any) -> None:
            state.log_history.append({"epoch_s": time.perf_counter() - self.started})

    def collate(items: list[tuple[Waveform, int]]) -> dict[str, Any]:
        inputs = _inputs(extractor, [samples for samples, _target in items], sample_rate)
        return {**inputs, "labels": torch.tensor([target for _samples, target in items])}

    def measure(found: Any) -> dict[str, float]:
        predicted = found.predictions.argmax(-1)
        return {"uar": figures(confusion(found.label_ids, predicted, found.predictions.shape[-1])).uar}

    arguments = TrainingArguments(
        output_dir=str(settings.folder / TRAINING),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(WARMUP * settings.epochs * math.ceil(len(waveforms["train"]) / settings.batch_size)),
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,  # the best, and the last, from which a finished run is rewritten
        load_best_model_at_end=True,
        metric_for_best_model="uar",
        remove_unused_columns=False,
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=settings.seed,
    )
    return Trainer(
        model=net,
        args=arguments,
        data_collator=collate,
        train_dataset=waveforms["train"],
        eval_dataset=waveforms["valid"],
        compute_metrics=measure,
        callbacks=[Clock()],
    )


def _train(trainer: Any, folder: Path) -> tuple[int, float]:
    """Train, or resume from the last complete epoch; return the selected epoch, from 0, and the seconds."""
    last = max(_saved(folder), key=lambda saved: int(saved.name.rpartition("-")[2]), default=None)
    if last is not None:
        _bring_along(last)
    try:
        trainer.train(resume_from_checkpoint=last and str(last))
    except Exception as error:  # a broken state raises many kinds of error
        if last is None or any(getattr(one, "begun", False) for one in trainer.callback_handler.callbacks):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds more than tensors and plain data, which is not loaded for safety"
        raise unusable(last, reason) from error
    found = [one["eval_uar"] for one in trainer.state.log_history if "eval_uar" in one]
    seconds = sum(one["epoch_s"] for one in trainer.state.log_history if "epoch_s" in one)
    return found.index(max(found)), round(float(seconds), 2)


def _saved(folder: Path) -> list[Path]:
    """Return the saved states of complete epochs in a folder; incomplete states are removed."""
    whole = []
    for saved in folder.glob("checkpoint-*"):
        if not (saved / STATE_FILE).exists():  # it is written last
            shutil.rmtree(saved)
        elif saved.name.rpartition("-")[2].isdecimal():
            whole.append(saved)
    return whole


def _check_saved(saved: Path) -> None:
    """Raise TrainingError if a saved state cannot be read."""
    try:
        typed(_read_state(saved), TrainerState)
        with safe_open(saved / "model.safetensors", "pt") as file:
            file.keys()
    except (OSError, ValueError, SafetensorError) as error:
        raise unusable(saved, (str(error).strip() or type(error).__name__).splitlines()[0]) from error


class TrainerState(Struct):
    """The required fields of transformers' state of a run."""

    log_history: list[dict[str, Any]]
    best_model_checkpoint: Text | None = None


def _read_state(saved: Path) -> Any:
    """Return transformers' log of a run; a loss or a gradient may be NaN, and each logged step is a row."""
    return read_foreign_json(saved / STATE_FILE, finite=False)


def _bring_along(saved: Path) -> None:
    """Update a state's path to the best epoch, so that a run whose folder was moved keeps it."""
    state = _read_state(saved)
    if best := state.get("best_model_checkpoint"):
        moved = str(saved.with_name(Path(best).name))
        if moved != best:
            content = json.dumps(state | {"best_model_checkpoint": moved}, indent=2)  # keeps NaN
            write_bytes(saved / STATE_FILE, (content + "\n").encode())
