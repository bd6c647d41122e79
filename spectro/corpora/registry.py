"""The registry of known corpora."""

from pathlib import Path

from spectro.corpora.datasets import anad, crema_d, emodb, emovo, eyase, folder, ravdess, savee, synthetic, tess, urdu
from spectro.corpora.table import Corpus, Scan, scan_corpus
from spectro.errors import CorpusError

CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        synthetic.SYNTHETIC,
        ravdess.RAVDESS,
        ravdess.RAVDESS_SONG,
        crema_d.CREMA_D,
        tess.TESS,
        savee.SAVEE,
        emodb.EMODB,
        emovo.EMOVO,
        anad.ANAD,
        eyase.EYASE,
        urdu.URDU,
        folder.FOLDER,
    )
}
"""The known corpora, by name."""


def find(name: str) -> Corpus:
    """Return the corpus with a name.

    Raises:
        CorpusError: no corpus has this name.
    """
    try:
        return CORPORA[name]
    except KeyError as error:
        raise CorpusError(f"unknown corpus {name!r}; choose from {', '.join(CORPORA)}") from error


def scan(name: str, root: Path) -> Scan:
    """List the clips of the corpus `name` under `root`.

    Raises:
        CorpusError: the corpus is unknown, or `root` does not exist or has no clip of this corpus.
    """
    return scan_corpus(find(name), root)
