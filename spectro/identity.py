"""What a result depends on, told so that what was made before a setting was added is still known.

Fingerprints of specs, names of kept features, and the settings that a run is resumed by are made of this.
"""

import json
from collections.abc import Collection
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

Settings = TypeVar("Settings")
LATER = "LATER"
"""The class variable of settings that have grown: each later field, and the value that means what was done before."""


def identity_of(settings: Any, without: Collection[str] = ()) -> dict[str, Any]:
    """Return a dataclass of settings as JSON values, to be hashed, or compared with those of an earlier run.

    A field that its class names in `LATER` is left out while it has the value given there. Every other field is told
    whatever its value, so that another default is another result.

    Args:
        settings: an instance of a dataclass; others may be its fields.
        without: fields that the result does not depend on.
    """
    plain: dict[str, Any] = json.loads(
        json.dumps({name: value for name, value in _plain(settings).items() if name not in without})
    )
    return plain


def restored(kind: type[Settings], plain: dict[str, Any]) -> Settings:
    """Return the settings that `identity_of` told, today or before its class had grown.

    Args:
        kind: the class.
        told: its fields, but for those of `LATER` that mean what was done before.
    """
    return kind(**{**getattr(kind, LATER, {}), **plain})


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        later = getattr(value, LATER, {})
        pairs = ((one.name, getattr(value, one.name)) for one in fields(value))
        return {name: _plain(own) for name, own in pairs if name not in later or own != later[name]}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value
