"""The weights verb: starting weights that were trained by others, listed, fetched and kept."""

from dataclasses import dataclass, field
from pathlib import Path

from spectro.errors import WeightsError
from spectro.files import printable
from spectro.model.convert import keep
from spectro.model.pretrained import PRETRAINED, StartingWeights


@dataclass(frozen=True, kw_only=True)
class WeightsSettings:
    """List the starting weights that have a name, or fetch some, check and convert them, and keep them in the cache.

    finetune fetches what it needs by itself; this verb fetches it beforehand, or takes a file that came another way.

    Args:
        names: weights to fetch; none lists all.
        from_: the original file, in place of a download, for one name.
    """

    names: list[str] = field(default_factory=list)
    from_: Path | None = None

    def __post_init__(self) -> None:
        if self.from_ is not None and len(self.names) != 1:
            raise WeightsError(
                "--from takes the file of one set of weights: name it, such as `spectro weights mn04_as`"
            )


def run(settings: WeightsSettings) -> int:
    """Run the verb; returns its exit code."""
    if not settings.names:
        for weights in PRETRAINED.values():
            print(_paragraph(weights))
        print("auto: what timm publishes for a backbone, which finetune fetches")
        return 0
    for name in settings.names:
        path = keep(name, settings.from_)
        weights = PRETRAINED[name]
        print(f"{name} is kept in {printable(path)}; its licence: {weights.licence}")
        if weights.specs:
            print(f"render for it with `spectro render --spec {' or '.join(weights.specs)}`,")
        print(f"start from it with `spectro finetune --backbone {weights.network} --weights {name}`")
    return 0


def _paragraph(weights: StartingWeights) -> str:
    """Return a paragraph on starting weights."""
    there = f"kept in {printable(weights.path)}" if weights.path.is_file() else "not fetched yet"
    return (
        f"{weights.name}: {weights.title}\n"
        f"  network {weights.network}, {weights.parameters / 1e6:.2f} million parameters; licence {weights.licence}\n"
        f"  reads pictures of {'the specs ' + ', '.join(weights.specs) if weights.specs else 'any spec'}\n"
        f"  {weights.url}\n"
        f"  {there}\n"
    )
