"""Nothing about a recording or its owner leaves the machine, and no trace of them stays in the user's home."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from spectro.privacy import OPENVINO_REPORTER, REPORTS
from tests.conftest import REPOSITORY, World

ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in (*REPORTS, "SPECTRO_ENGINE")}
TRACE = ("strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-e", "signal=none")
KEPT_AT_HOME = {"spectro", "matplotlib"}
"""Folders allowed in the user's cache: our exports, and matplotlib's list of the system's fonts."""

EVERYTHING = """
import http.client, os, signal, sys, threading, time
from pathlib import Path

import spectro
from spectro.cli import main

checkpoint, images, clip, work = sys.argv[1:5]
port = int(sys.argv[5])

assert main(["export", "--checkpoint", checkpoint, "--out", f"{work}/exported", "--pictures", "2"]) == 0
for engine in ("torch", "onnx", "openvino"):
    predictor = spectro.load(checkpoint if engine == "torch" else f"{work}/exported", engine=engine)
    assert predictor.predict_wav(clip).label
assert main(["predict", clip, "--checkpoint", f"{work}/exported", "--engine", "onnx", "--out", f"{work}/p.csv"]) == 0
assert main(["explain", clip, "--checkpoint", checkpoint, "--out", f"{work}/explained"]) == 0
assert main([
    "finetune", "--index", images, "--backbone", "test_efficientnet", "--weights", "none", "--train.epochs", "1",
    "--out", f"{work}/trained", "--precision", "32-true", "--workers", "0", "--accelerator", "cpu",
    "--batch_size", "16",
]) == 0
import transformers

def ask():
    head = b'--b\\r\\nContent-Disposition: form-data; name="file"; filename="clip.wav"\\r\\n\\r\\n'
    body = head + Path(clip).read_bytes() + b"\\r\\n--b--\\r\\n"
    for _ in range(600):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("POST", "/v1/predict/wav", body, {"Content-Type": "multipart/form-data; boundary=b"})
            answers.append(connection.getresponse().status)
            break
        except OSError:
            time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)

answers = []
threading.Thread(target=ask, daemon=True).start()
main(["serve", "--checkpoint", f"{work}/exported", "--engine", "onnx", "--port", str(port)])
assert answers == [200], answers
print("all was done")
"""


def _contacts(trace: str) -> list[str]:
    """Return the lines of a trace that contact another machine or look up a name."""
    found = []
    for line in trace.splitlines():
        place = re.search(r'sa_family=AF_INET6?, sin6?_port=htons\((\d+)\).*?"([0-9a-f.:]+)"', line)
        if place and (place[1] == "53" or not re.fullmatch(r"127\..*|::1", place[2])):
            found.append(line)
        if "io.systemd.Resolve" in line:
            found.append(line)
    return found


@pytest.fixture(scope="module")
def traced() -> None:
    """Skip the test if strace is missing or may not trace."""
    if shutil.which("strace") is None or subprocess.run([*TRACE, "-o", os.devnull, "true"], check=False).returncode:
        pytest.skip("strace is missing or may not trace: cannot check whether libraries report")


@pytest.mark.slow  # every verb and every library under strace
def test_spectro_contacts_no_other_host_and_leaves_only_caches_in_the_home(
    world: World, tmp_path: Path, traced: None
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    pytest.importorskip("transformers")
    pytest.importorskip("fastapi")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    home = tmp_path / "home"
    home.mkdir()
    clip = next(world.corpus.rglob("*.wav"))
    program = [sys.executable, "-c", EVERYTHING, str(world.checkpoint), str(world.images), str(clip), str(tmp_path)]
    environment = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("XDG_")}
    done = subprocess.run(
        [*TRACE, "-o", str(tmp_path / "trace"), *program, str(port)],
        env={**environment, "HOME": str(home), "PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.endswith("all was done\n"), done.stderr
    assert _contacts((tmp_path / "trace").read_text()) == []
    assert {path.name for path in home.iterdir()} <= {".cache", ".config"}
    assert {path.name for path in home.glob(".c*/*")} <= KEPT_AT_HOME


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "127.0.0.53"])
def test_the_trace_shows_a_contact_to_another_host(address: str, tmp_path: Path, traced: None) -> None:
    code = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
socket.socket(family, socket.SOCK_DGRAM).connect_ex((sys.argv[1], 53))
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect_ex(("127.0.0.1", 80))
"""
    subprocess.run([*TRACE, "-o", str(tmp_path / "trace"), sys.executable, "-c", code, address], check=True)
    assert len(_contacts((tmp_path / "trace").read_text())) == 1


def test_telemetry_is_off_after_import_unless_the_user_enables_it() -> None:
    code = f"""
import os, sys, importlib.util
import spectro
print(*(os.environ[name] for name in {tuple(REPORTS)!r}))
print(importlib.util.find_spec({OPENVINO_REPORTER!r}))
"""
    run = [sys.executable, "-c", code]
    shown = subprocess.run(run, env=ENVIRONMENT, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == [" ".join(REPORTS.values()), "None"]
    wanted = {**ENVIRONMENT, "HF_HUB_DISABLE_TELEMETRY": "0"}
    shown = subprocess.run(run, env=wanted, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[0] == "1 0 0 1 1"


def test_telemetry_of_an_already_imported_onnxruntime_is_disabled() -> None:
    code = """
import sys, types
told = []
sys.modules["onnxruntime"] = types.SimpleNamespace(disable_telemetry_events=lambda: told.append("off"))
import spectro
assert told == ["off"]
"""
    subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, cwd=REPOSITORY, check=True)
