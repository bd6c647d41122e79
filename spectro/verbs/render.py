"""The render verb: render a corpus as pictures."""

from spectro.corpora.registry import find
from spectro.files import printable
from spectro.rendering.index import FAILURES, INDEX, REJECTED
from spectro.rendering.render import RenderSettings, render
from spectro.rendering.worker import IMAGES


def run(settings: RenderSettings) -> int:
    """Run the verb; returns its exit code."""
    rendering = render(settings)
    print(
        f"{rendering.images} pictures in {printable(rendering.out / IMAGES)} ({rendering.reused} already existed), "
        f"index in {printable(rendering.out / INDEX)}"
    )
    if rendering.rejected:
        print(f"{rendering.rejected} recordings left out, see {printable(rendering.out / REJECTED)}")
    if rendering.failures:
        print(f"{rendering.failures} failures, see {printable(rendering.out / FAILURES)}")
    print(f"licence of the recordings: {find(settings.corpus).licence}")
    return 1 if rendering.failures else 0
