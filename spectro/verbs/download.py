"""The download verb: fetch a freely downloadable corpus."""

from dataclasses import dataclass
from pathlib import Path

from spectro.corpora.download import download
from spectro.corpora.registry import find
from spectro.errors import DownloadError
from spectro.files import held, printable
from spectro.outputs import LOCK


@dataclass(frozen=True, kw_only=True)
class DownloadSettings:
    """Download a corpus; downloads are verified and resumed.

    Args:
        corpus: ravdess, ravdess-song, tess or crema-d. For other corpora, an error names the page to request them from.
        out: output folder; null for data/corpora/NAME, where render looks.
    """

    corpus: str = "ravdess"
    out: Path | None = None


def run(settings: DownloadSettings) -> int:
    """Run the verb; returns its exit code."""
    folder = settings.out or Path("data/corpora") / settings.corpus
    with held(folder / LOCK) as free:
        if not free:
            raise DownloadError(f"{printable(folder)}: another download writes there; wait, or name another --out")
        download(settings.corpus, folder)
    print(f"{settings.corpus} is in {printable(folder)}; its licence: {find(settings.corpus).licence}")
    return 0
