"""Features and a scikit-learn classifier, as in most public projects, evaluated on held-out speakers.

Hyper-parameters are searched on the training speakers only, with speaker-disjoint inner folds of untouched clips. The
best are then fitted on all training clips (and their copies). The validation speakers select nothing here: they are
evaluated so that designs can be compared without looking at test speakers.

The fitted classifier is evaluated but not saved: saving would need pickle.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from spectro.baselines.features import FeatureSettings, describe, extract
from spectro.baselines.results import Clips, Numbers, report, run_folder, write_run
from spectro.corpora.splits import Part, speaker_names
from spectro.errors import FeatureError, TrainingError
from spectro.identity import identity_of
from spectro.model.metadata import Result, Training
from spectro.picture import spectrogram
from spectro.rendering.index import read_index
from spectro.schema import check_least

Name = Literal["logistic", "knn", "tree", "forest", "boosting", "xgboost", "svm-linear", "svm-rbf", "mlp"]


def _xgboost(seed: int) -> Any:
    try:
        from xgboost import XGBClassifier
    except ImportError as error:
        raise FeatureError("xgboost is not installed: pip install 'spectro[xgboost]'") from error
    return XGBClassifier(n_estimators=100, colsample_bytree=0.2, subsample=0.8, n_jobs=1, random_state=seed)


CLASSIFIERS: dict[str, tuple[Callable[[int], Any], dict[str, list[Any]]]] = {
    "logistic": (lambda seed: LogisticRegression(max_iter=300, random_state=seed), {"C": [0.001, 0.01, 0.1]}),
    "knn": (lambda _: KNeighborsClassifier(), {"n_neighbors": [1, 5, 15, 31], "weights": ["uniform", "distance"]}),
    "tree": (
        lambda seed: DecisionTreeClassifier(random_state=seed),
        {"max_depth": [5, 10, None], "min_samples_leaf": [1, 5, 20]},
    ),
    "forest": (
        lambda seed: RandomForestClassifier(200, random_state=seed),
        {"min_samples_leaf": [1, 3]},
    ),
    "boosting": (
        lambda seed: HistGradientBoostingClassifier(max_iter=60, max_features=0.2, random_state=seed),
        {"max_leaf_nodes": [4, 12]},
    ),
    "xgboost": (_xgboost, {"max_depth": [2, 4]}),
    "svm-linear": (lambda seed: LinearSVC(random_state=seed), {"C": [0.0001, 0.001, 0.01]}),
    "svm-rbf": (lambda _: SVC(), {"C": [1.0, 10.0, 100.0], "gamma": [0.0001, 0.0003, 0.001, 0.003]}),
    "mlp": (
        lambda seed: MLPClassifier((128,), max_iter=40, random_state=seed),
        {"alpha": [0.01, 1.0, 10.0]},
    ),
}
"""A factory for each classifier, given a seed, and its search grid."""


@dataclass(frozen=True, kw_only=True)
class ClassicalSettings:
    """Train a classical classifier on features of the clips, and evaluate it on held-out speakers.

    Writes run.json, and evaluation-test/ and evaluation-valid/ as `evaluate` does. Exit code 1 means that some
    clips were left out because their features could not be computed.

    Args:
        index: folder of a rendering; its recordings must still be in place.
        classifier: logistic (regression), knn, tree, forest, boosting (histogram-based gradient boosting), xgboost
            (extra `xgboost`), svm-linear, svm-rbf, or mlp.
        features: the features to use.
        out: folder for the results; null for checkpoints/CLASSIFIER-NAME_OF_INDEX-foldN.
        labels: label scheme: emotion, emotion5, valence, gender, emotion-gender, emotion5-gender.
        protocol: how speakers are split: luna-jimenez, emobox (both for RAVDESS), group-kfold or loso; random-leaky
            mixes speakers, as tutorials do, and reports it.
        fold: fold of the protocol, from 0.
        copies: all: also train on the augmented copies of training clips; none: untouched clips only.
        inner_folds: speaker-disjoint folds of the hyper-parameter search within the training speakers; 0 uses the
            middle of the grid without a search.
        seed: random seed.
        workers: number of processes; 0 for one per core.
        test: evaluate on the test speakers; use false while comparing designs.
    """

    index: Path = Path("data/images/synthetic")
    classifier: Name = "svm-rbf"
    features: FeatureSettings = field(default_factory=FeatureSettings)
    out: Path | None = None
    labels: str = "emotion"
    protocol: str = "group-kfold"
    fold: int = 0
    copies: Literal["none", "all"] = "none"
    inner_folds: int = 4
    seed: int = 0
    workers: int = 0
    test: bool = True

    def __post_init__(self) -> None:
        if self.inner_folds < 0 or self.inner_folds == 1:
            raise TrainingError(f"inner_folds is {self.inner_folds}; it must be 0, or 2 or more")
        check_least(self, TrainingError, seed=0, workers=0)

    @property
    def folder(self) -> Path:
        """The folder that the results are written to."""
        return self.out or Path("checkpoints") / f"{self.classifier}-{self.index.name}-fold{self.fold}"


@dataclass(frozen=True)
class Table:
    """Clips and their features.

    Args:
        clips: the clips.
        values: features, float32 of shape (rows, features).
        failures: clips whose features could not be computed, with the reason.
    """

    clips: Clips
    values: npt.NDArray[np.float32]
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fitted:
    """A fitted classifier.

    Args:
        model: scaler and classifier; its class numbers count only the labels it was trained on, without gaps.
        codes: the label's number for each of the model's class numbers, int64 of shape (trained labels,).
        chosen: the selected hyper-parameters.
    """

    model: Pipeline
    codes: Numbers
    chosen: dict[str, Any]

    def predict(self, values: npt.NDArray[np.float32]) -> Numbers:
        """Return the predicted labels' numbers for features, float32 of shape (clips, features)."""
        predicted: Numbers = self.codes[self.model.predict(values)]
        return predicted

    def probabilities(self, values: npt.NDArray[np.float32], labels: int) -> npt.NDArray[np.float64] | None:
        """Return probabilities, float64 of shape (clips, labels); None for classifiers that give none."""
        if not hasattr(self.model, "predict_proba"):
            return None
        probabilities = np.zeros((len(values), labels))
        probabilities[:, self.codes] = self.model.predict_proba(values)
        return probabilities


def classical(settings: ClassicalSettings) -> Result:
    """Train and evaluate, and write the results.

    Returns:
        the content of `run.json`.

    Raises:
        FeatureError: the features cannot be computed.
        TrainingError: there are too few training speakers for the inner folds; or the output folder is not of a run,
            or another run is writing there.
        RenderError, CorpusError: the rendering, labels or split are not available.
    """
    with run_folder(settings.folder):
        return _classical(settings)


def _classical(settings: ClassicalSettings) -> Result:
    table = _table(settings)
    started = time.perf_counter()
    fitted = fit(table, settings)
    training = Training(
        seconds=round(time.perf_counter() - started, 2),
        chosen=fitted.chosen,
        left_out=tuple(table.failures),
        settings=_plain(settings),
    )
    parts: tuple[Part, ...] = ("valid", "test") if settings.test else ("valid",)
    return write_run(
        settings.folder,
        table.clips,
        {part: _measure(fitted, table, part, settings) for part in parts},
        training,
        backbone=settings.classifier,
        parameters=_parameters(fitted.model),
    )


def fit(table: Table, settings: ClassicalSettings) -> Fitted:
    """Search hyper-parameters, and fit the best on all training clips.

    Raises:
        TrainingError: there are too few training speakers for the inner folds, or no classifier of the grid can be
            fitted.
        FeatureError: the classifier is not installed.
    """
    make, grid = CLASSIFIERS[settings.classifier]
    model = Pipeline([("scale", StandardScaler()), ("classify", make(settings.seed))])
    clips = table.clips
    codes, targets = np.unique(clips.rows["target"].to_numpy(np.int64), return_inverse=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # epochs are limited on purpose
        # failed fits are left out
        warnings.filterwarnings("ignore", "(Scoring failed|One or more of the test scores are non-finite)")
        if settings.inner_folds:
            rows = clips.part("train")
            # a clip without a speaker is its own speaker
            named = speaker_names(clips.rows).fillna("clip " + clips.rows["clip_id"])
            speakers = named.to_numpy(object).astype(str)[rows]
            if len(set(speakers)) < settings.inner_folds:
                raise TrainingError(
                    f"{len(set(speakers))} training speakers are too few for {settings.inner_folds} inner folds; "
                    "set inner_folds lower, or to 0 for no search"
                )
            inner = StratifiedGroupKFold(settings.inner_folds, shuffle=True, random_state=settings.seed)
            search = GridSearchCV(
                model,
                {f"classify__{name}": values for name, values in grid.items()},
                scoring="recall_macro",
                cv=inner,
                refit=False,
                n_jobs=settings.workers or -1,
            )
            try:
                search.fit(table.values[rows], targets[rows], groups=speakers)
            except ValueError as error:
                raise TrainingError(
                    f"{settings.classifier}: the search failed on {len(rows)} clips ({error})"
                ) from error
            if np.isnan(search.best_score_):
                raise TrainingError(f"{settings.classifier}: no point of the grid can be fitted to {len(rows)} clips")
            best = dict(search.best_params_)
        else:
            best = {f"classify__{name}": values[len(values) // 2] for name, values in grid.items()}
        rows = clips.part("train", copies=settings.copies == "all")
        if "classify__n_neighbors" in best:
            best["classify__n_neighbors"] = min(best["classify__n_neighbors"], len(rows))
        model.set_params(**best)
        model.fit(table.values[rows], targets[rows])
    return Fitted(model, codes, {name.removeprefix("classify__"): value for name, value in best.items()})


def _table(settings: ClassicalSettings) -> Table:
    """Return the labelled clips with their features; check labels and split before computing features."""
    index, _spec = read_index(settings.index)
    Clips.of(index, settings.labels, settings.protocol, settings.fold)
    copies = settings.copies == "all"
    found = extract(settings.index, settings.features, copies=copies, workers=settings.workers)
    clips = Clips.of(found.rows, settings.labels, settings.protocol, settings.fold)
    return Table(clips, clips.rows[found.names].to_numpy(np.float32), tuple(found.failures))


def _measure(fitted: Fitted, table: Table, part: Part, settings: ClassicalSettings) -> dict[str, Any]:
    """Classify the clips of a part, and write its report."""
    values = table.values[table.clips.part(part)]
    _index, spec = read_index(settings.index)

    def classify(path: Path) -> Any:
        vector, _names = describe(spectrogram.read(path, spec, max_duration_s=None), spec, settings.features)
        return fitted.predict(vector[None])

    probabilities = fitted.probabilities(values, len(table.clips.labels))
    return report(settings.folder, part, table.clips, fitted.predict(values), probabilities, classify)


def _parameters(model: Pipeline) -> int | None:
    """Return the number of fitted weights; None for methods that store clips or trees."""
    classifier = model[-1]
    if isinstance(classifier, MLPClassifier):
        return int(sum(one.size for one in (*classifier.coefs_, *classifier.intercepts_)))
    if isinstance(classifier, LogisticRegression | LinearSVC):
        return int(classifier.coef_.size + classifier.intercept_.size)
    return None


def _plain(settings: ClassicalSettings) -> dict[str, Any]:
    """Return the settings that the figures depend on, as JSON values."""
    free = ("out", "index", "workers", "test", "features")
    return identity_of(settings, free) | {"features": settings.features.identity()}
