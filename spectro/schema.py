"""Untrusted JSON as objects whose fields have types and bounds.

msgspec validates against the class declarations; unknown names are ignored.
"""

import re
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from spectro.errors import SpectroError
from spectro.files import printable

Kind = TypeVar("Kind")

Text: TypeAlias = Annotated[str, Meta(max_length=10_000)]
Names: TypeAlias = Annotated[tuple[Text, ...], Meta(max_length=100_000)]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=10**15)]

_PLACED = re.compile(r"(?P<problem>.*) - at `\$\.?(?P<place>.*)`", re.DOTALL)


def typed(content: Any, kind: type[Kind]) -> Kind:
    """Return JSON values as an instance of a class.

    Args:
        content: what `json.loads` returned.
        kind: a class that msgspec supports: a `Struct`, a dataclass, a `TypedDict`.

    Raises:
        ValueError: a value is missing, of the wrong type or out of bounds; the message names the field.
    """
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        found = _PLACED.fullmatch(str(error))
        text = f"{found['place']}: {found['problem']}" if found else str(error)
        raise ValueError(printable(text).replace("`", "'")) from error


def check_least(settings: Any, error: type[SpectroError], **least: float) -> None:
    """Check that settings are not below their least values.

    Args:
        settings: an object whose attributes are the settings.
        error: the error to raise.
        **least: the least value of each setting, by name.

    Raises:
        SpectroError: a setting is below its least value; the text names both.
    """
    for name, low in least.items():
        if not (value := getattr(settings, name)) >= low:
            raise error(f"{name} is {value}; it must be {low:g} or more")


def plain(value: Any) -> Any:
    """Return an object as JSON values that `typed` reads back."""
    return msgspec.to_builtins(value)
