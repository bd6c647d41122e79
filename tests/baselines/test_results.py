from pathlib import Path

import pytest

from spectro.baselines.results import run_folder
from spectro.errors import EvaluationError, TrainingError
from spectro.evaluate.evaluate import EvaluateSettings, evaluate
from spectro.evaluate.report import METRICS_FILE, RUN_FILE
from spectro.files import held, write_json
from spectro.outputs import LOCK


def test_a_folder_with_foreign_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text('{"name": "mine"}')
    with pytest.raises(TrainingError, match=r"run\.json: already exists, and spectro did not make it"):
        run_folder(tmp_path).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == [RUN_FILE]


def test_a_run_folder_of_an_earlier_version_is_recognised(tmp_path: Path) -> None:
    write_json(tmp_path / RUN_FILE, {"backbone": "svm", "split": {}, "training": {}})
    with run_folder(tmp_path):
        pass
    (tmp_path / RUN_FILE).unlink()
    (tmp_path / "evaluation-valid").mkdir()
    write_json(tmp_path / "evaluation-valid" / METRICS_FILE, {"checkpoint": "svm", "part": "valid", "uar": {}})
    with run_folder(tmp_path):
        pass


def test_two_runs_cannot_write_to_the_same_folder(tmp_path: Path) -> None:
    with held(tmp_path / LOCK), pytest.raises(TrainingError, match="another run writes there; wait, or name another"):
        run_folder(tmp_path).__enter__()


def test_a_report_does_not_overwrite_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "predictions.csv").write_text("mine")
    with pytest.raises(EvaluationError, match=r"predictions\.csv: already exists, and spectro did not make it"):
        evaluate(EvaluateSettings(out=tmp_path))
    assert (tmp_path / "predictions.csv").read_text() == "mine"
