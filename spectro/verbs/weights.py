"""The weights verb: list, fetch and cache starting weights that others have trained."""

from dataclasses import dataclass, field
from pathlib import Path

from spectro.errors import WeightsError
from spectro.files import printable
from spectro.model.convert import keep
from spectro.model.pretrained import PRETRAINED, StartingWeights


@dataclass(frozen=True, kw_only=True)
class WeightsSettings:
    """List the named starting weights, or fetch, verify, convert and cache some of them.

    finetune fetches the weights it needs; this verb fetches them in advance, or takes a file obtained another way.

    Args:
        names: weights to fetch; none lists all.
        from_: the original file, instead of a download; needs exactly one name.
    """

    names: list[str] = field(default_factory=list)
    from_: Path | None = None

    def __post_init__(self) -> None:
        if self.from_ is not None and len(self.names) != 1:
            raise WeightsError(
                "--from takes the file of one set of weights: name that set, as in `spectro weights mn04_as`"
            )


def run(settings: WeightsSettings) -> int:
    """Run the verb; returns its exit code."""
    if not settings.names:
        for weights in PRETRAINED.values():
            print(_paragraph(weights))
        print("auto: timm's published weights for a backbone, fetched by finetune")
        return 0
    for name in settings.names:
        path = keep(name, settings.from_)
        weights = PRETRAINED[name]
        print(f"{name} is in {printable(path)}; its licence: {weights.licence}")
        if weights.specs:
            print(f"render for it with `spectro render --spec {' or '.join(weights.specs)}`,")
        print(f"start from it with `spectro finetune --backbone {weights.network} --weights {name}`")
    return 0


def _paragraph(weights: StartingWeights) -> str:
    """Return a paragraph that describes starting weights."""
    there = f"cached in {printable(weights.path)}" if weights.path.is_file() else "not fetched yet"
    return (
        f"{weights.name}: {weights.title}\n"
        f"  network {weights.network}, {weights.parameters / 1e6:.2f} million parameters; licence {weights.licence}\n"
        f"  reads pictures of {'the specs ' + ', '.join(weights.specs) if weights.specs else 'any spec'}\n"
        f"  {weights.url}\n"
        f"  {there}\n"
    )
