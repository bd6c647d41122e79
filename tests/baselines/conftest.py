"""A rendering that baselines may write features to."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import World


@pytest.fixture(scope="session")
def world(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The tests' world with a rendering of its own, since features are stored with the pictures."""
    images: Path = tmp_path_factory.mktemp("baselines") / "images"
    shutil.copytree(world.images, images)
    return replace(world, images=images)
