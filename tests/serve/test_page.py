"""The page in a real browser: what users see, and what it must not do."""

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from spectro import outputs
from spectro.predict.predictor import Predictor
from spectro.predict.timeline.segments import SILENCE, timeline
from tests.conftest import RATE, World, WriteWav, voice
from tests.serve.conftest import Running, Start

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
WIDE, PHONE = (1280, 900), (320, 640)
WAIT_MS = 60_000  # the machine may be busy
CALL = np.concatenate([voice(2.0), np.zeros(RATE), voice(4.0, pitch=240), np.zeros(RATE), voice(30.0)])
WATCH_MICROPHONE = """() => {
  const { mediaDevices } = navigator;
  const open = mediaDevices.getUserMedia.bind(mediaDevices);
  window.streams = [];
  mediaDevices.getUserMedia = async (wanted) => {
    const stream = await open(wanted);
    streams.push(stream);
    return stream;
  };
}"""
HOSTILE = "<img src=x onerror=alert(1)>.wav"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found; install Debian's package chromium")

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def running(start: Start) -> Iterator[Running]:
    with start(page=True) as found:
        yield found


@pytest.fixture
def visit(browser: Browser, running: Running) -> Iterator[Open]:
    """Opens the page; at the end, checks that it contacted no other host, kept its policy, and fits the width."""
    opened: list[tuple[Page, int]] = []
    hosts: set[str | None] = set()
    trouble: list[str] = []

    def visited(size: tuple[int, int] = WIDE, url: str = running.url, **options: object) -> Page:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)  # type: ignore[arg-type]
        context.add_init_script(
            "addEventListener('securitypolicyviolation', (event) => console.error('refused: ' + event.blockedURI))"
        )
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("request", lambda asked: hosts.add(urlsplit(asked.url).hostname))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
        page.on("console", lambda said: trouble.append(said.text) if said.type in ("error", "warning") else None)
        page.goto(url)
        opened.append((page, size[0]))
        return page

    yield visited
    widths = [(page.evaluate("document.documentElement.scrollWidth"), width) for page, width in opened]
    for page, _width in opened:
        page.context.close()
    # the browser logs error answers itself; the page shows their sentence
    assert [text for text in trouble if not re.match(r"Failed to load resource: .* status of (4|501)", text)] == []
    assert hosts - {None, ""} == {"127.0.0.1"}  # data: and blob: have no host
    assert all(scrolled <= width for scrolled, width in widths)


def upload(page: Page, path: Path) -> None:
    page.locator("#file").set_input_files(path)


def upload_and_wait(page: Page, path: Path) -> None:
    upload(page, path)
    expect(page.locator("body")).to_have_attribute("data-state", "answer")


def answer_with(told: object, route: Route) -> None:
    route.fulfill(json=told)


def test_the_start_page_shows_instructions_and_only_three_controls(visit: Open) -> None:
    page = visit()
    expect(page.get_by_role("heading")).to_have_count(1)
    expect(page.get_by_text("Drop a recording here")).to_be_visible()
    expect(page.get_by_text("Nothing you upload is kept")).to_be_visible()
    for name in ("Use dark colours", "Choose a recording", "Speak"):
        expect(page.get_by_role("button", name=name)).to_have_count(1)
    expect(page.locator("button, input, select, a").filter(visible=True)).to_have_count(3)


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_a_clip_shows_label_and_probabilities_and_downloads_as_csv(
    visit: Open, wav: WriteWav, world: World, tmp_path: Path, size: tuple[int, int]
) -> None:
    path, page = wav(samples=voice(1.2)), visit(size)
    expected = Predictor(world.checkpoint, device="cpu").predict_wav(path)
    upload_and_wait(page, path)
    expect(page.locator("#label")).to_have_text(expected.label)
    first, *_ = sorted(expected.probabilities.items(), key=lambda pair: -pair[1])
    bars = page.locator("#bars li")
    assert len(bars.all()) == len(expected.probabilities)
    expect(bars.first).to_contain_text(first[0])
    expect(bars.first).to_contain_text(f"{100 * first[1]:.0f} %")
    expect(page.get_by_role("status")).to_contain_text(expected.label)
    expect(page.get_by_role("heading", name=f"Evidence for {first[0]}")).to_be_visible()
    expect(page.locator("#timeline")).to_be_hidden()
    assert page.locator("#wave").evaluate("one => one.firstChild.shadowRoot.querySelector('canvas').width") > 100
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    download.value.save_as(tmp_path / "table.csv")
    (row,) = csv.DictReader((tmp_path / "table.csv").read_text().splitlines())
    assert row["label"] == expected.label
    assert float(row["end_s"]) == pytest.approx(1.2, abs=0.01)
    assert float(row[f"p_{first[0]}"]) == pytest.approx(first[1], abs=1e-4)


def test_the_heatmap_covers_only_sound_and_can_be_hidden(visit: Open, wav: WriteWav) -> None:
    page = visit()
    upload_and_wait(page, wav(samples=voice(0.8)))
    heat = page.locator("#heat")
    assert heat.evaluate("one => one.width") == pytest.approx(0.8 * RATE / 320, abs=2)  # of 80 columns
    assert heat.evaluate("one => one.getContext('2d').getImageData(0, 0, one.width, one.height).data.some(v => v > 0)")
    switch = page.get_by_role("switch", name="Explanation")
    switch.uncheck()
    expect(heat).to_be_hidden()
    expect(page.locator("#picture")).to_be_visible()
    switch.check()
    expect(heat).to_be_visible()


def test_a_long_recording_shows_a_timeline_that_plays_on_click(
    visit: Open, wav: WriteWav, world: World, tmp_path: Path
) -> None:
    path, page = wav("call.wav", CALL.astype(np.float32)), visit()
    segments = list(timeline(Predictor(world.checkpoint, device="cpu"), path))
    upload_and_wait(page, path)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download JSON").click()
    download.value.save_as(tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["label"], row["start_s"]) for row in rows] == [(one.label, one.start_s) for one in segments]
    expect(page.locator("#rows tr")).to_have_count(len(rows))
    lengths = page.locator(".line").evaluate_all("lines => lines.map(one => one.offsetWidth)")
    assert 20 * sum(lengths) / lengths[0] == pytest.approx(38, abs=0.2)  # lines of 20 s
    stretches = page.locator(".stretch")
    sounding = [one for one in segments if one.label != SILENCE]
    assert [float(one.get_attribute("data-start") or -1) for one in stretches.all()][:2] == [
        one.start_s for one in sounding[:2]
    ]
    later = next(one for one in sounding if one.start_s > 2.5)
    with page.expect_response(re.compile("/v1/explain")) as explained:
        page.locator(f'.stretch[data-start="{later.start_s:g}"]').first.click()
    assert int(explained.value.request.header_value("content-length") or 0) < path.stat().st_size / 5
    assert explained.value.json()["about"] == later.label
    first_mark = float(page.locator("#times span").first.inner_text())
    assert later.start_s - 0.3 < first_mark < later.end_s
    expect(page.locator(".stretch[aria-pressed=true]").first).to_have_attribute("data-start", f"{later.start_s:g}")
    expect(page.locator("#audio")).to_have_js_property("paused", False)
    page.wait_for_function("start => document.querySelector('#audio').currentTime > start + 0.1", arg=later.start_s)
    page.get_by_role("button", name="Pause").click()
    now = page.locator("#audio").evaluate("one => one.currentTime")
    page.wait_for_function("now => Math.abs(document.querySelector('#wave').ariaValueNow - now) < 0.06", arg=now)
    line, cursor = (
        page.locator(".line").nth(int(now // 20)).bounding_box(),
        page.locator(".line .cursor").bounding_box(),
    )
    assert line and cursor
    assert cursor["x"] + 1 - line["x"] == pytest.approx(now % 20 / 20 * line["width"], abs=2)
    expect(page.locator(".stretch[data-now]")).to_have_count(1)
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    expect(page.locator(".line")).to_have_count(4)  # of 12 s
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]


def test_explanation_times_and_probabilities_agree_across_file_formats(visit: Open, wav: WriteWav) -> None:
    page, shown = visit(), []
    for name, options in (("call.wav", {"subtype": "PCM_24"}), ("call.flac", {}), ("hasty.wav", {})):
        path = wav(name, CALL[3 * RATE :].astype(np.float32), **options)
        if name == "hasty.wav":
            with path.open("r+b") as file:
                file.seek(28)
                file.write(bytes(4))  # some writers leave the bytes per second at 0
        with page.expect_response(re.compile("/v1/explain")) as explained:
            upload_and_wait(page, path)
        shown.append((page.locator("#times").inner_text(), explained.value.json()["probabilities"]))
        assert ("start_s=" in explained.value.url) == name.endswith("flac")
    for times, probabilities in shown[1:]:
        assert times == shown[0][0]
        assert probabilities == pytest.approx(shown[0][1], abs=0.02)


@pytest.mark.parametrize("width", [320, 360])
def test_axis_labels_are_not_cut_off_and_do_not_overlap_on_phones(
    visit: Open, running: Running, wav: WriteWav, width: int
) -> None:
    page, path = visit((width, 640)), wav(samples=voice(1.2))
    with requests.post(f"{running.url}/v1/explain", files={"file": path.read_bytes()}, timeout=60) as said:
        told = said.json()
    for later_s in (0, 12_345.6):
        late = told | {"start_s": told["start_s"] + later_s}
        page.route("**/v1/explain*", partial(answer_with, late))
        upload_and_wait(page, path)
        for axis, low, high in (("times", "left", "right"), ("frequencies", "top", "bottom")):
            boxes = page.locator(f"#{axis} span").evaluate_all(
                "marks => marks.map((one) => one.getBoundingClientRect().toJSON())"
            )
            boxes.sort(key=lambda box: box[low])
            assert len(boxes) > 1
            assert all(box["left"] >= 0 and box["right"] <= width for box in boxes)
            assert all(one[high] <= other[low] for one, other in pairwise(boxes))


def test_unusable_files_show_an_error_that_the_next_recording_clears(
    visit: Open, wav: WriteWav, tmp_path: Path
) -> None:
    (tmp_path / "letter.wav").write_text("Dear Sir or Madam")
    page = visit(PHONE)
    upload(page, tmp_path / "letter.wav")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("letter.wav: is not a recording that can be read")
    expect(page.locator("#answer")).to_be_hidden()
    upload(page, wav("quiet.wav", np.zeros(10 * RATE, np.float32)))
    expect(alert).to_contain_text(re.compile("silen"))
    upload_and_wait(page, wav())
    expect(alert).to_be_hidden()


def test_file_names_and_error_messages_are_not_rendered_as_html(visit: Open, wav: WriteWav, tmp_path: Path) -> None:
    page = visit()
    upload_and_wait(page, wav(HOSTILE))
    expect(page.get_by_role("heading", name=HOSTILE)).to_be_visible()
    (tmp_path / HOSTILE).write_text("no recording")
    upload(page, tmp_path / HOSTILE)
    expect(page.get_by_role("alert")).to_contain_text("<img src=x")
    assert page.locator("img").count() == 0


def test_hostile_labels_never_become_html_or_csv_formulas(
    visit: Open, running: Running, wav: WriteWav, tmp_path: Path
) -> None:
    evil = "=cmd|'<b>\"1\"</b>'"
    page, path = visit(), wav()
    for part in ("model", "explain"):
        files = {"file": path.read_bytes()} if part == "explain" else None
        with requests.request("POST" if files else "GET", f"{running.url}/v1/{part}", files=files, timeout=60) as said:
            told = json.loads(said.text.replace('"happy"', json.dumps(evil)))
        page.route(f"**/v1/{part}*", partial(answer_with, told))
    upload_and_wait(page, path)
    expect(page.locator("#bars")).to_contain_text(evil)
    assert page.locator("main b:not(#times b, #frequencies b)").count() == 0
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    download.value.save_as(tmp_path / "table.csv")
    header, row = csv.reader((tmp_path / "table.csv").read_text().splitlines())
    assert f"p_{evil}" in header
    assert row[2].removeprefix("'") in (evil, *(name.removeprefix("p_") for name in header[4:]))
    assert not any(cell.startswith("=") for cell in header + row)


def test_the_page_escapes_csv_formulas_like_the_command_line(visit: Open) -> None:
    labels = ["=1", "@a", "\ta", "-5", "+1.5", "-1.", "-1+2", "+a", "-", "calm", "a=b"]
    written = visit().evaluate(
        """async (labels) => (await import("/static/tables.js")).csv(labels.map(
            (label) => ({ label, start_s: -1, end_s: 2, confidence: 1, probabilities: {} })), [])""",
        labels,
    )
    rows = list(csv.DictReader(written.splitlines()))
    assert [row["label"] for row in rows] == [outputs.cell("label", label) for label in labels]
    assert {row["start_s"] for row in rows} == {"-1"}


def test_the_page_asks_for_an_api_key_once_per_session(start: Start, visit: Open, wav: WriteWav) -> None:
    with start(page=True, keys=("secret",)) as closed:
        page = visit(url=closed.url)
        upload(page, wav())
        key, dialog = page.get_by_label("API key"), page.get_by_role("dialog")
        key.fill("wrong")
        key.press("Enter")
        expect(dialog).to_contain_text("This key was not accepted.")
        key.press("Escape")
        expect(page.get_by_role("status")).to_have_text("Cancelled.")
        upload(page, wav())
        key.fill("secret")
        page.get_by_role("button", name="Continue").click()
        expect(page.locator("body")).to_have_attribute("data-state", "answer")
        page.reload()
        upload_and_wait(page, wav())
        assert page.evaluate("Object.values(sessionStorage)") == ["secret"]
        assert page.evaluate("[Object.values(localStorage).length, document.cookie]") == [0, ""]
        page.goto("about:blank")  # closes connections, so that the service can stop


def test_the_page_accepts_a_key_with_symbols_and_refuses_a_blank_key(start: Start, visit: Open, wav: WriteWav) -> None:
    secret = "100% ^[a|b] é"
    with start(page=True, keys=(secret,)) as closed:
        page, asked = visit(url=closed.url), []
        upload(page, wav())
        key = page.get_by_label("API key")
        expect(key).to_be_visible()
        page.on("request", lambda request: asked.append(request.url))
        key.fill("  ")
        key.press("Enter")
        expect(page.get_by_role("dialog")).to_contain_text("This cannot be the key")
        assert asked == []
        key.fill(secret)
        key.press("Enter")
        expect(page.locator("body")).to_have_attribute("data-state", "answer")
        page.goto("about:blank")  # closes connections, so that the service can stop


def test_the_page_can_be_used_with_the_keyboard_alone(visit: Open, wav: WriteWav) -> None:
    page, long = visit(), wav("call.wav", CALL[: 9 * RATE].astype(np.float32))

    def tab_to(selector: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"the Tab key does not reach {selector}")

    # registered before the key presses: the browser does not wait for a handler of its dialog
    page.on("filechooser", lambda chooser: chooser.set_files(long))
    tab_to("#file")
    page.keyboard.press("Space")
    expect(page.locator("body")).to_have_attribute("data-state", "answer")
    tab_to("#play")
    page.keyboard.press("Enter")
    expect(page.locator("#audio")).to_have_js_property("paused", False)
    page.keyboard.press("Enter")
    expect(page.locator("#audio")).to_have_js_property("paused", True)
    tab_to("#wave")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#wave")).to_have_attribute("aria-valuenow", "1.0")
    tab_to(".stretch")
    page.keyboard.press("ArrowRight")
    second = float(page.locator(".stretch").nth(1).get_attribute("data-start") or -1)
    assert page.evaluate("document.activeElement.dataset.start") == f"{second:g}"
    page.keyboard.press("Enter")
    page.wait_for_function("start => document.querySelector('#audio').currentTime >= start", arg=second)
    tab_to("#model")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#card")).to_contain_text("mobilenet-ravdess")


def test_a_prediction_within_the_margin_shows_as_unsure(visit: Open, wav: WriteWav) -> None:
    page = visit()
    upload_and_wait(page, wav())
    page.get_by_label("margin").fill("1")
    page.keyboard.press("Tab")
    expect(page.locator("#label")).to_have_text("unsure")
    expect(page.locator("#closeness")).to_contain_text("too close to call")
    expect(page.locator("#about")).not_to_contain_text("unsure")


def test_the_model_card_shows_training_data_and_mean_recall(visit: Open, wav: WriteWav) -> None:
    page = visit()
    upload_and_wait(page, wav())
    held = list[Route]()
    page.route("**/v1/model?*", lambda route: route.continue_() if held else held.append(route))
    with page.expect_request("**/v1/model?*"):
        page.get_by_label("Model", exact=True).select_option("mobilenet-ravdess")
    page.get_by_label("margin").fill("0.05")
    page.keyboard.press("Tab")  # starts again, with the chosen model
    card = page.locator("#card")
    expect(card).to_contain_text("RAVDESS speech, 24 speakers, CC BY-NC-SA 4.0")
    expect(card).to_contain_text("mean recall 67 %")
    expect(page.get_by_text("Acted emotion is not felt emotion.")).to_be_visible()


def test_an_analysis_can_be_cancelled(visit: Open, wav: WriteWav) -> None:
    page = visit()
    page.route("**/v1/explain*", lambda _route: None)  # never answered
    with page.expect_request("**/v1/explain*"):
        upload(page, wav())
    player = page.locator("#listen").bounding_box()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("status")).to_have_text("Cancelled.")
    expect(page.get_by_role("progressbar")).to_be_hidden()
    page.unroute("**/v1/explain*")
    upload_and_wait(page, wav())
    assert page.locator("#listen").bounding_box() == player  # the layout does not jump when the answer arrives


def test_cancelling_an_explanation_keeps_the_timeline(visit: Open, wav: WriteWav) -> None:
    page, long = visit(), wav("call.wav", CALL[: 9 * RATE].astype(np.float32))
    upload_and_wait(page, wav())  # its picture must not be shown for the next recording
    page.route("**/v1/explain*", lambda _route: None)  # never answered
    with page.expect_request("**/v1/explain*"):
        upload(page, long)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("status")).to_have_text("Cancelled.")
    expect(page.locator("body")).to_have_attribute("data-state", "answer")
    expect(page.locator("#unexplained")).to_have_text("No explanation: cancelled")
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    page.unroute("**/v1/explain*")
    page.locator(".stretch").first.click()
    expect(page.locator("#about")).to_contain_text("Evidence for")
    expect(page.locator("#figure")).to_be_visible()


def test_a_pending_explanation_does_not_end_the_next_analysis(visit: Open, wav: WriteWav) -> None:
    page, explained = visit(), list[Route]()
    page.route("**/v1/explain*", lambda route: explained.append(route))  # held until the test continues
    with page.expect_request("**/v1/explain*"):
        upload(page, wav("long.wav", CALL[: 9 * RATE].astype(np.float32)))
    with page.expect_request("**/v1/explain*"):
        upload(page, wav("clip.wav"))
    expect(page.locator("body")).to_have_attribute("data-state", "working")
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    expect(page.locator("#answer")).to_be_hidden()
    explained[-1].continue_()
    expect(page.locator("body")).to_have_attribute("data-state", "answer")
    expect(page.locator("#asked")).to_have_text("Prediction for this clip")


def test_a_model_without_explanations_still_shows_its_prediction(visit: Open, wav: WriteWav) -> None:
    page, reason = visit(), {"detail": "exported cannot be explained: its checkpoint is missing"}
    page.route("**/v1/explain*", lambda route: route.fulfill(status=501, json=reason))
    upload_and_wait(page, wav())
    expect(page.locator("#unexplained")).to_contain_text(reason["detail"])
    expect(page.locator("#figure")).to_be_hidden()
    expect(page.locator("#label")).not_to_be_empty()


def test_a_file_that_the_browser_cannot_play_is_still_analysed(visit: Open, wav: WriteWav) -> None:
    page = visit()
    upload_and_wait(page, wav("clip.aiff", format="AIFF"))
    expect(page.get_by_text("This browser cannot play this kind of file")).to_be_visible()
    expect(page.get_by_role("button", name="Play", exact=True)).to_be_disabled()
    expect(page.locator("#length")).to_have_text("0:01.0")


def test_the_speak_button_stays_enabled_after_microphone_access_is_denied(visit: Open) -> None:
    page = visit()
    page.evaluate("() => { navigator.mediaDevices.getUserMedia = () => Promise.reject(new Error('Not allowed')); }")
    page.get_by_role("button", name="Speak").click()
    expect(page.get_by_role("alert")).to_contain_text("Not allowed")
    expect(page.get_by_role("button", name="Speak")).to_be_enabled()


def test_a_microphone_recording_is_analysed_and_its_stream_closed(visit: Open) -> None:
    page = visit(permissions=["microphone"])
    page.evaluate(WATCH_MICROPHONE)
    page.get_by_role("button", name="Speak").dblclick()
    page.wait_for_function("() => document.querySelector('#recorded').textContent > '0:01.2'", timeout=WAIT_MS)
    page.get_by_role("button", name="Stop and analyse").click()
    expect(page.locator("body")).to_have_attribute("data-state", "answer")
    expect(page.get_by_role("heading", name="recording.wav")).to_be_visible()
    assert page.locator("#audio").evaluate("one => one.duration") > 1.1
    assert page.evaluate("streams.flatMap((one) => one.getTracks()).map((one) => one.readyState)") == ["ended"]
    expect(page.get_by_role("button", name="Speak")).to_be_enabled()


UNNAMED = """() => [...document.querySelectorAll('button, input, select, progress, meter, [role], [tabindex]')]
  .filter((one) => !(one.ariaLabel || one.labels?.length || one.textContent.trim()
    || one.getAttribute('aria-labelledby') || ['status', 'alert'].includes(one.getAttribute('role'))))
  .map((one) => one.outerHTML)"""
PALE = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const colour = parts(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const one = node.parentElement;
    if (!node.textContent.trim() || !one.checkVisibility() || one.closest('noscript')) continue;
    const pair = [light(parts(getComputedStyle(one).color)), light(behind(one))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 4.5) found.push([node.textContent, ratio]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast_and_controls_have_accessible_names(
    visit: Open, wav: WriteWav, tmp_path: Path, scheme: str
) -> None:
    page = visit(color_scheme=scheme, reduced_motion="reduce")
    assert page.evaluate(PALE) == []
    upload_and_wait(page, wav("call.wav", CALL[: 9 * RATE].astype(np.float32)))
    assert page.evaluate(PALE) == []
    assert page.evaluate(UNNAMED) == []
    levels = page.locator("h1, h2, h3").evaluate_all("all => all.map((one) => one.tagName)")
    assert levels[0] == "H1"
    assert levels.count("H1") == 1
    other = {"light": "dark", "dark": "light"}[scheme]
    back = page.locator("body").evaluate("one => getComputedStyle(one).backgroundColor")
    page.get_by_role("button", name=f"Use {other} colours").click()
    assert page.locator("body").evaluate("one => getComputedStyle(one).backgroundColor") != back
    assert page.evaluate(PALE) == []
    (tmp_path / "letter.wav").write_text("Dear Sir or Madam")
    upload(page, tmp_path / "letter.wav")
    expect(page.get_by_role("alert")).to_be_visible()
    assert page.evaluate(PALE) == []


def test_page_files_have_strict_security_headers_and_others_get_404(running: Running) -> None:
    for path, kind in (("/", "text/html"), ("/static/page.js", "text/javascript"), ("/static/page.css", "text/css")):
        with requests.get(running.url + path, timeout=9) as answer:
            assert answer.headers["Content-Type"].startswith(kind)
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "http" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Referrer-Policy"] == "no-referrer"
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/none.js"):
        with requests.get(running.url + path, timeout=9) as answer:
            assert answer.status_code == 404


def test_a_service_without_the_page_answers_404_at_the_root(start: Start) -> None:
    with start() as bare, requests.get(bare.url + "/", timeout=9) as answer:
        assert answer.status_code == 404
