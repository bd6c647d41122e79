"""A service under hostile requests: no 500, no memory growth, alive at the end, and answering throughout.

    python benchmarks/hostile.py RAVDESS_FOLDER [--requests 2000] [--examples 600] [--seconds 8]

schemathesis sends requests that the OpenAPI document allows or forbids. Broken recordings and pictures are uploaded:
truncated, with bytes changed, of other kinds, and small files that claim to be large. Memory is read after each quarter
of the broken files (by the first, everything that loads on demand is loaded), and at the end.

Then each attack of attacks.py runs for some seconds, while another client requests `/healthz` over new connections. It
must be answered within a second each time, or the exit code is 1. While heavy recordings are uploaded, the other
client's predictions are timed, too.
"""

import argparse
import io
import json
import re
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import requests
import soundfile
from attacks import ATTACKS
from server import Server, alive, running, under_attack

import spectro
from spectro.picture import png

KINDS = ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "W64", "CAF")


def recordings(clip: Path) -> list[bytes]:
    """Return a recording in many formats, and demanding recordings: long, with many channels, at a high rate."""
    samples, rate = soundfile.read(clip, dtype="float32")
    found = []
    for kind in KINDS:
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, rate, format=kind)
        found.append(buffer.getvalue())
    for seconds, high, channels in ((3600, 8000, 1), (59, 192_000, 8), (59, 655_350, 8), (0.001, 8000, 1)):
        buffer = io.BytesIO()
        with soundfile.SoundFile(buffer, "w", high, channels, format="FLAC") as file:
            for _ in range(max(1, int(seconds))):
                file.write(np.zeros((high, channels), np.int16))
        found.append(buffer.getvalue())
    for header in ((1, 0, 16_000), (65_535, 1, 16_000), (1, 1, 4_294_967_295), (2, 2, 0)):
        channels, code, high = header
        parts = struct.pack("<HHIIHH", code, channels, high, 32_000, 2, 16)
        found.append(
            b"RIFF\xff\xff\xff\x7fWAVEfmt " + struct.pack("<I", 16) + parts + b"data\xff\xff\xff\x7f" + bytes(64)
        )
    return found


def pictures(clip: Path) -> list[bytes]:
    """Return a rendered picture, and PNGs that claim to be large."""
    predictor = spectro.load()
    spec = predictor.checkpoint.spec
    found = [png.encode(predictor.render(clip), spec, "clip")]
    for width, height in ((100_000, 100_000), (spec.width, 1_000_000), (0, 0)):
        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
        data = zlib.compress(bytes(10_000_000))
        body = struct.pack(">I", len(data)) + b"IDAT" + data + struct.pack(">I", zlib.crc32(b"IDAT" + data))
        found.append(b"\x89PNG\r\n\x1a\n" + chunk + body)
    return found


def broken(whole: list[bytes], generator: np.random.Generator) -> Iterator[bytes]:
    """Yield files whole, truncated, with bytes changed, and noise, endlessly."""
    while True:
        for content in whole:
            yield content
            yield content[: generator.integers(len(content) + 1)]
            changed = bytearray(content)
            for place in generator.integers(min(400, len(changed)), size=generator.integers(1, 12)):
                changed[place] = generator.integers(256)
            yield bytes(changed)
            yield generator.bytes(int(generator.integers(1, 4000)))


def upload(server: Server, clip: Path, count: int) -> tuple[Counter[int], list[float]]:
    """Upload broken files; return the count of each status, and the service's memory at each quarter, in MiB."""
    generator = np.random.default_rng(0)
    sounds, drawn = broken(recordings(clip), generator), broken(pictures(clip), generator)
    statuses: Counter[int] = Counter()
    memory = []
    with requests.Session() as session:
        for number in range(count):
            path = ("/v1/predict/wav", "/v1/predict/image", "/v1/timeline")[number % 3]
            content = next(drawn) if number % 3 == 1 else next(sounds)
            url = f"http://{server.host}:{server.port}{path}"
            statuses[session.post(url, files={"file": ("a.wav", content)}, timeout=300).status_code] += 1
            if (number + 1) % (count // 4) == 0:
                memory.append(server.memory_mb)
    return statuses, memory


def fuzz(server: Server, examples: int) -> dict[str, object]:
    """Run schemathesis; return its exit code, number of cases, and summary."""
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", "--max-examples", str(examples)]
    command += ["--phases", "examples,coverage,fuzzing", "--exclude-checks", "positive_data_acceptance", "--no-color"]
    done = subprocess.run(
        [*command, f"http://{server.host}:{server.port}/openapi.json"], capture_output=True, text=True, check=False
    )
    cases = re.search(r"(\d[\d,]*) generated", done.stdout)
    return {
        "exit code": done.returncode,
        "cases": int(cases[1].replace(",", "")) if cases else 0,
        "summary": [line.strip() for line in done.stdout.splitlines() if line.strip()][-12:],
    }


def heavy(folder: Path, rate: int) -> Path:
    """Write a small FLAC file of 59 s and 8 channels; return its path."""
    path = folder / f"{rate}.flac"
    with soundfile.SoundFile(path, "w", rate, 8, format="FLAC") as file:
        for _ in range(59):
            file.write(np.zeros((rate, 8), np.int16))
    return path


def attacks(clip: Path, seconds: float) -> dict[str, dict[str, Any]]:
    """Run every attack; return what the other client and the attackers observed."""
    content = clip.read_bytes()

    def predict(port: int) -> None:
        url = f"http://127.0.0.1:{port}/v1/predict/wav"
        requests.post(url, files={"file": content}, timeout=300).raise_for_status()

    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        too_heavy, heaviest = heavy(Path(folder), 655_350), heavy(Path(folder), 52_000)
        with running() as server:
            predict(server.port)
            for name in ATTACKS:
                if name not in ("hang_ups", "flood", "guesses"):
                    found[name] = under_attack(server.port, name, seconds)
            for name in ("hang_ups", "flood"):
                for size, file in (("refused as too heavy", too_heavy), ("heaviest that is allowed", heaviest)):
                    for what, ask in (("healthz", alive), ("predictions", predict)):
                        found[f"{name}, {size}: {what}"] = under_attack(
                            server.port, name, seconds, "--file", str(file), ask=ask
                        )
            predict(server.port)
        with running(SPECTRO_API_KEY="right") as server:
            found["guesses"] = under_attack(server.port, "guesses", seconds)
    return found


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a folder of recordings")
    parser.add_argument("--requests", type=int, default=2000, help="number of broken files to upload")
    parser.add_argument("--examples", type=int, default=600, help="examples of schemathesis per operation")
    parser.add_argument("--seconds", type=float, default=8, help="duration of each attack")
    given = parser.parse_args()
    clip = min(given.source.rglob("*.wav"))
    with running() as server:
        statuses, memory = upload(server, clip, given.requests)
        found = fuzz(server, given.examples)
        after = server.memory_mb
        counts = requests.get(f"http://{server.host}:{server.port}/metrics", timeout=60).text
        with clip.open("rb") as file:
            alive = requests.post(
                f"http://{server.host}:{server.port}/v1/predict/wav", files={"file": file}, timeout=60
            )
    errors = [line for line in counts.splitlines() if re.search(r'requests_total\{.*status="5\d\d"', line)]
    content = {
        "broken files": dict(sorted(statuses.items())),
        "schemathesis": found,
        "answers of 500 and above": errors,
        "memory in MiB at each quarter of the files, and after schemathesis": [round(one) for one in (*memory, after)],
        "alive": alive.status_code == 200,
    }
    print(json.dumps(content, indent=2), flush=True)
    attacked = attacks(clip, given.seconds)
    for name, one in attacked.items():
        print(json.dumps({"attack": name} | one), flush=True)
    slow = [
        name
        for name, one in attacked.items()
        if "predictions" not in name and (one["slowest_ms"] is None or one["slowest_ms"] > 1000)
    ]
    sys.exit(f"/healthz took more than a second during {', '.join(slow)}" if slow else 0)


if __name__ == "__main__":
    main()
