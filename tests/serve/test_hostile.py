from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings

from tests.conftest import World
from tests.serve.conftest import Running, Start


def test_responses_conform_to_the_openapi_schema(start: Start) -> None:
    with start() as running:
        schema = schemathesis.openapi.from_url(running.url + "/openapi.json")
        for found in schema.get_all_operations():

            @given(case=found.ok().as_strategy())
            @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
            def ask(case: schemathesis.Case) -> None:
                # a schema cannot describe recordings, so most data that fits it is refused with 415
                case.call_and_validate(timeout=60, excluded_checks=[schemathesis.checks.positive_data_acceptance])

            ask()


def broken_files(whole: bytes, count: int) -> Iterator[bytes]:
    """Yield truncated copies, and copies with changed bytes in the header."""
    generator = np.random.default_rng(0)
    for number in range(count):
        broken = bytearray(whole)
        if number % 2:
            del broken[generator.integers(len(whole)) :]
        for place in generator.integers(0, max(1, min(200, len(broken))), size=number % 5 if broken else 0):
            broken[place] = generator.integers(256)
        yield bytes(broken)


@pytest.mark.parametrize("path", ["/v1/predict/wav", "/v1/timeline", "/v1/predict/image"])
def test_corrupt_files_get_200_or_a_4xx_error_that_names_the_file(service: Running, world: World, path: str) -> None:
    whole: Path = next((world.images / "images").glob("*_0.png") if "image" in path else world.corpus.rglob("*.wav"))
    for broken in broken_files(whole.read_bytes(), 40):
        answer = requests.post(service.url + path, files={"file": ("a", broken)}, timeout=60)
        assert answer.status_code in (200, 413, 415, 422), answer.text
        if answer.status_code != 200:
            assert answer.json()["detail"].startswith("a: ")
    assert requests.get(service.url + "/healthz", timeout=9).status_code == 200
