"""Uploads that are rendered in separate processes."""

import io
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from spectro.errors import AudioError, SpectroError
from spectro.picture.spec import Image, SpectrogramSpec
from spectro.predict.predictor import Predictor
from spectro.serve import renderers as module
from spectro.serve.limits import Limits
from spectro.serve.renderers import Renderers
from tests.conftest import SMALL, World, WriteWav
from tests.serve.conftest import Running

ONCE = "SPECTRO_TEST_KILLED_ONCE"


def kill_renderer(_content: bytes, _spec: SpectrogramSpec, _limits: Limits) -> Image:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def kill_renderer_once(content: bytes, spec: SpectrogramSpec, limits: Limits) -> Image:
    try:
        Path(os.environ[ONCE]).touch(exist_ok=False)
    except FileExistsError:
        return module.render_bytes(content, spec, limits)
    return kill_renderer(content, spec, limits)


@pytest.fixture
def predictor(world: World) -> Predictor:
    return Predictor(world.trained, engine="torch")


@pytest.fixture
def renderers() -> Iterator[Renderers]:
    made = Renderers(1)
    yield made
    made.shutdown()


def test_only_concurrent_uploads_render_in_a_pool_with_equal_results(
    renderers: Renderers, predictor: Predictor, wav: WriteWav
) -> None:
    content = wav().read_bytes()
    alone = renderers.render(io.BytesIO(content), predictor, Limits())
    assert renderers._pool is None
    with renderers._counted():
        beside = renderers.render(io.BytesIO(content), predictor, Limits())
        with pytest.raises(AudioError, match="audio: is not a recording"):
            renderers.render(io.BytesIO(b"nothing of the kind"), predictor, Limits())
    assert renderers._pool is not None
    np.testing.assert_array_equal(alone, beside)
    np.testing.assert_array_equal(alone, predictor.render(io.BytesIO(content)))


def test_zero_processes_start_no_pool(predictor: Predictor, wav: WriteWav) -> None:
    here = Renderers(0)
    with here._counted():
        here.render(io.BytesIO(wav().read_bytes()), predictor, Limits())
    assert here._pool is None


def test_a_process_goes_to_the_upload_that_has_waited_longest(renderers: Renderers) -> None:
    process = renderers._take()
    with ThreadPoolExecutor(2) as threads:
        waiting = []
        for number in (1, 2):
            waiting.append(threads.submit(renderers._take))
            Running.until(lambda number=number: len(renderers._waiting) == number)  # type: ignore[misc]
        for one in waiting:
            renderers._give(process)
            assert one.result(20) is process
    renderers._give(process)


@pytest.mark.slow
def test_a_killed_render_process_is_replaced(
    renderers: Renderers, predictor: Predictor, wav: WriteWav, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = wav().read_bytes()
    monkeypatch.setenv(ONCE, str(tmp_path / "killed"))
    with renderers._counted():
        monkeypatch.setattr(module, "render_bytes", kill_renderer_once)
        assert renderers.render(io.BytesIO(content), predictor, Limits()).shape == SMALL.shape
        monkeypatch.setattr(module, "render_bytes", kill_renderer)
        with pytest.raises(SpectroError, match="were killed, perhaps"):
            renderers.render(io.BytesIO(content), predictor, Limits())
        monkeypatch.setattr(module, "render_bytes", kill_renderer_once)
        assert renderers.render(io.BytesIO(content), predictor, Limits()).shape == SMALL.shape
