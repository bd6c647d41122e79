"""Find the recordings for a benchmark: any kind that spectro reads."""

from argparse import ArgumentParser
from pathlib import Path

from spectro.audio.recording import recordings


def spread(parser: ArgumentParser, source: Path, limit: int | None = None) -> list[Path]:
    """Return the recordings below a folder, or `limit` of them, evenly spread; exits if there are none."""
    every = sorted(path for path in recordings(source) if path.is_file())
    if not every:
        parser.error(f"{source}: holds no recording; name a folder that does")
    return every if limit is None else every[:: max(1, len(every) // limit)][:limit]
