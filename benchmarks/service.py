"""The service under load: are all answers complete and right, how long do they take, and how much do batches help?

    python benchmarks/service.py RAVDESS_FOLDER [--requests 1000] [--at_a_time 32] [--rounds 5] [--against CHECKOUT]
                                                   [--checkpoint FOLDER]

Two services, one with batches and one without, take turns. Each round sends each of them 1,000 requests for
predictions, 32 at a time over kept-alive connections. Every answer is compared with the Python API's. The client shares
the machine's cores with the services. With --against, the second service is another version, from its own checkout and
with its own defaults, and its answers are not compared.
"""

import argparse
import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import local

import numpy as np
from clips import spread
from server import Server, running

import spectro
from spectro.predict.predictor import Prediction

BOUNDARY = "spectro-benchmark"
TOLERANCE = 1e-5


def body(content: bytes) -> bytes:
    """Return the body of an upload."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="clip.wav"\r\n\r\n'
    return head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


class Client:
    """Sends requests to a service, over one connection per thread.

    Args:
        server: the service.
    """

    def __init__(self, server: Server) -> None:
        self._server, self._own = server, local()

    def ask(self, upload: bytes) -> tuple[int, dict[str, object], float]:
        """Return the status, the answer, and the seconds that it took."""
        if not hasattr(self._own, "connection"):
            self._own.connection = http.client.HTTPConnection(self._server.host, self._server.port, timeout=60)
        started = time.perf_counter()
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        self._own.connection.request("POST", "/v1/predict/wav", upload, headers)
        answer = self._own.connection.getresponse()
        content = json.loads(answer.read())
        return answer.status, content, time.perf_counter() - started


def wrong(status: int, content: dict[str, object], expected: Prediction) -> bool:
    """Return whether an answer differs from the Python API's."""
    if status != 200 or content["label"] != expected.label:
        return True
    said = content["probabilities"]
    assert isinstance(said, dict)
    return any(abs(said[label] - chance) > TOLERANCE for label, chance in expected.probabilities.items())


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a folder of recordings")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--at_a_time", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", type=Path, help="a checkout of another version, instead of one without batches")
    parser.add_argument("--checkpoint", type=Path, help="this version's checkpoint; default: the shipped one")
    given = parser.parse_args()
    other = "one by one" if given.against is None else "before"
    paths = spread(parser, given.source, 200)
    predictor = spectro.load(given.checkpoint)
    expected = [predictor.predict_wav(path) for path in paths]
    uploads = [body(path.read_bytes()) for path in paths]
    rates: dict[str, list[float]] = {"batches": [], other: []}
    latencies: dict[str, list[float]] = {"batches": [], other: []}
    counts = {"asked": 0, "lost": 0, "wrong": 0}
    there = {} if given.against is None else {"checkout": given.against}
    chosen = [] if given.checkpoint is None else ["--checkpoint", str(given.checkpoint.resolve())]
    own = ["--max_batch", "1", *chosen] if given.against is None else []
    with running(*chosen) as batched, running(*own, **there) as single:
        for turn in range(given.rounds + 1):  # the first warms up
            for name, server in (("batches", batched), (other, single)):
                client = Client(server)
                order = [number % len(paths) for number in range(given.requests)]
                started = time.perf_counter()
                with ThreadPoolExecutor(given.at_a_time) as threads:
                    answers = list(threads.map(lambda place, one=client: one.ask(uploads[place]), order))
                seconds = time.perf_counter() - started
                counts["asked"] += given.requests
                counts["lost"] += given.requests - len(answers)
                counts["wrong"] += sum(
                    wrong(status, content, expected[place]) if name != "before" else status != 200
                    for place, (status, content, _) in zip(order, answers, strict=True)
                )
                if turn:
                    rates[name].append(given.requests / seconds)
                    latencies[name] += [taken for _, _, taken in answers]
    content = {
        **counts,
        "requests a second": {name: round(float(np.median(values)), 1) for name, values in rates.items()},
        "ratio of the medians": round(float(np.median(rates["batches"]) / np.median(rates[other])), 2),
        "ratio of each round": [round(a / b, 2) for a, b in zip(*rates.values(), strict=True)],
        "ms, p50 p95 p99": {
            name: [round(1000 * float(value), 1) for value in np.quantile(values, (0.5, 0.95, 0.99))]
            for name, values in latencies.items()
        },
    }
    print(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
