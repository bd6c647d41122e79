import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pytest
import requests
from playwright.sync_api import Browser, Page, expect, sync_playwright

from spectro.predict.predictor import Predictor
from spectro.predict.windows import SILENCE, Segment, timeline
from spectro.serve.page import look
from spectro.serve.strip import bars, strip
from tests.conftest import RATE, World, WriteWav, voice
from tests.serve.conftest import Running, Start

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--autoplay-policy=no-user-gesture-required",
]
CALL = np.concatenate([voice(2.0), np.zeros(RATE), voice(4.0, pitch=240), np.zeros(RATE), voice(30.0)])

pytestmark = [  # gradio's own
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting'"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; install Debian's package chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def running(start: Start) -> Iterator[Running]:
    with start(page=True) as found:
        yield found


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["wide", "phone"])
def page(request: pytest.FixtureRequest, browser: Browser, running: Running) -> Iterator[Page]:
    width, height = request.param
    page = browser.new_page(viewport={"width": width, "height": height}, accept_downloads=True)
    hosts: set[str | None] = set()
    page.on("request", lambda asked: hosts.add(urlsplit(asked.url).hostname))
    page.goto(running.url)
    expect(page.get_by_role("button", name="Recognise")).to_be_visible(timeout=30_000)
    yield page
    assert hosts - {None, ""} == {"127.0.0.1"}  # data: and blob: have no host
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def _give(page: Page, path: Path) -> None:
    page.set_input_files("#recording input[type=file]", path)


@needs_browser
def test_a_clip_shows_its_label_bars_picture_and_table(page: Page, wav: WriteWav, world: World, tmp_path: Path) -> None:
    path = wav(samples=voice(1.2))
    expected = Predictor(world.checkpoint, device="cpu").predict_wav(path)
    _give(page, path)
    expect(page.locator("#verdict .spectro-label")).to_have_text(expected.label, timeout=30_000)
    for label in expected.probabilities:
        expect(page.locator("#verdict")).to_contain_text(label)
    picture = page.locator("#picture img")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 500
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the table (CSV)").click()
    download.value.save_as(tmp_path / "table.csv")
    table = pd.read_csv(tmp_path / "table.csv")
    assert table["label"].tolist() == [expected.label]
    assert table["confidence"][0] == pytest.approx(expected.confidence, abs=0.001)


@needs_browser
def test_a_file_that_is_no_recording_gets_a_sentence(page: Page, tmp_path: Path) -> None:
    (tmp_path / "letter.wav").write_text("Dear Sir or Madam")
    _give(page, tmp_path / "letter.wav")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("letter.wav: is not a recording that can be read", timeout=30_000)
    assert "Traceback" not in page.content()
    expect(page.locator("#picture img")).not_to_be_visible()


@needs_browser
def test_a_long_recording_shows_its_course_and_plays_from_where_one_clicks(page: Page, wav: WriteWav) -> None:
    _give(page, wav("call.wav", CALL.astype(np.float32)))
    segments = page.locator(".spectro-line button")
    expect(segments.first).to_be_visible(timeout=30_000)
    starts = [float(one.get_attribute("data-start") or -1) for one in segments.all()]
    assert starts[0] == pytest.approx(0, abs=0.05)
    later = segments.nth(next(place for place, start in enumerate(starts) if start > 2.5))
    later.focus()
    page.keyboard.press("Enter")
    player = page.locator(".spectro-course audio")
    expect(player).to_have_js_property("paused", False)
    assert player.evaluate("one => one.currentTime") >= 2.9
    expect(page.locator("#verdict")).to_contain_text("Share of the time with sound")


@needs_browser
def test_a_checkpoint_can_be_chosen_with_the_keyboard(page: Page, wav: WriteWav) -> None:
    _give(page, wav())
    expect(page.locator("#verdict .spectro-label")).to_be_visible(timeout=30_000)
    expect(page.locator("#verdict")).not_to_contain_text("disgust")
    page.get_by_role("combobox", name="Checkpoint").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_role("combobox", name="Checkpoint")).to_have_value("mobilenet-ravdess")
    page.get_by_role("button", name="Recognise").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#verdict")).to_contain_text("disgust", timeout=30_000)


@needs_browser
def test_a_closed_page_asks_for_the_key(start: Start, browser: Browser) -> None:
    with start(page=True, keys=("secret",)) as closed:
        page = browser.new_page()
        page.goto(closed.url)
        expect(page.get_by_role("button", name="Login")).to_be_visible(timeout=30_000)
        assert page.get_by_role("button", name="Recognise").count() == 0
        page.locator("input").nth(0).fill("spectro")
        page.locator("input[type=password]").fill("secret")
        page.get_by_role("button", name="Login").click()
        expect(page.get_by_role("button", name="Recognise")).to_be_visible(timeout=30_000)
        page.close()


def test_the_page_reads_uploads_and_nothing_else(running: Running, tmp_path: Path, wav: WriteWav) -> None:
    secret = wav("secret.wav")
    config = requests.get(running.url + "/config", timeout=9).json()
    number = next(one["id"] for one in config["dependencies"] if one["inputs"])

    def ask(path: str) -> str:
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        content = {"data": [file, "checkpoint"], "fn_index": number, "session_hash": "one", "trigger_id": None}
        requests.post(running.url + "/gradio_api/queue/join", json=content, timeout=9)
        data = running.url + "/gradio_api/queue/data?session_hash=one"
        with requests.get(data, timeout=30, stream=True) as events:
            return next(line for line in events.iter_lines(decode_unicode=True) if "process_completed" in line)

    assert '"success":false' in ask(str(secret))
    with secret.open("rb") as file:
        uploaded = requests.post(running.url + "/gradio_api/upload", files={"files": file}, timeout=9).json()[0]
    assert '"success":true' in ask(uploaded)
    assert requests.get(f"{running.url}/gradio_api/file={secret}", timeout=9).status_code in (403, 404)
    assert requests.get(f"{running.url}/gradio_api/file=http://example.org/", timeout=9).status_code == 404
    assert config.get("run_history") is not True


def test_a_long_stretch_of_one_label_is_explained_at_its_middle(world: World, wav: WriteWav) -> None:
    predictor = Predictor(world.checkpoint, device="cpu", max_duration_s=5)
    found = look(predictor, wav("long.wav", voice(20.0)), 3600)
    assert found.table is not None


def test_what_is_heard_of_a_course_is_the_timeline(world: World, wav: WriteWav) -> None:
    predictor = Predictor(world.checkpoint, device="cpu")
    path = wav("call.wav", CALL.astype(np.float32))
    found = look(predictor, path, 3600)
    segments = list(timeline(predictor, path))
    assert found.table is not None
    assert found.table["label"].tolist() == [one.label for one in segments]
    assert found.course.count("data-start") >= sum(one.label != SILENCE for one in segments)
    assert pd.read_csv(str(found.download))["label"].tolist() == found.table["label"].tolist()
    quiet = look(predictor, wav("quiet.wav", np.zeros(10 * RATE, np.float32)), 3600)
    assert "nothing but silence" in quiet.verdict
    assert quiet.table is None


def test_names_and_labels_are_text_not_markup() -> None:
    evil = '<script>alert("1")</script>'
    segment = Segment(path=evil, start_s=0, end_s=70, label=evil, confidence=1.0, probabilities={evil: 1.0})
    for html in (bars(evil, {evil: 1.0}, [evil]), strip([segment], [evil], f"file={evil}")):
        assert "<script" not in html
        assert "&lt;script" in html
    assert strip([segment], [evil], "a").count("data-start") == 3  # one for each half minute


def test_a_label_has_one_colour_everywhere() -> None:
    labels = ["neutral", "angry", "sad"]
    segment = Segment(path="a", start_s=0, end_s=1, label="sad", confidence=1.0, probabilities={"sad": 1.0})
    colours = {
        re.search(r"background:(#\w+)", part)[1]  # type: ignore[index]
        for part in (bars("", {"sad": 1.0}, labels), strip([segment], labels, "a").partition("data-start")[2])
    }
    assert len(colours) == 1
