"""The model card of a checkpoint: the network, its training data, its figures and its limits."""

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from spectro.files import printable
from spectro.model.metadata import Description

PARTS = {"train": "training", "valid": "validation", "test": "test"}


def card(about: Description, name: str) -> str:
    """Return a checkpoint's card as Markdown.

    Args:
        about: its description.
        name: name of its folder.
    """
    return _template().render(
        name=name,
        about=about,
        spec=about.spec,
        data=about.data,
        split=about.split,
        speakers=about.split.speakers if about.split else {"train": (), "valid": (), "test": ()},
        training=about.training,
        parts=PARTS,
        start=_start(about),
    )


def _start(about: Description) -> str:
    """Return the network's starting weights, with their checksum."""
    digest = about.training.setting("weights").partition(" sha256:")[2] if about.training else ""
    return (about.weights or "unknown") + (f",\nSHA-256 {digest}" if digest else "")


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("spectro.model", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {"printable": printable, "percent": "{:.1%}".format, "figure": "{:.3f}".format}
    return environment.get_template("card.md.j2")
