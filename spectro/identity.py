"""Identities of settings: what a result depends on, unchanged for old results when a new setting is added.

Fingerprints of specs, names of cached features, and the settings that a run is resumed with are made of identities.
"""

import json
from collections.abc import Collection
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

Settings = TypeVar("Settings")
LATER = "LATER"
"""Class variable of settings classes with later fields: each such field, and the value that means the old behaviour."""


def identity_of(settings: Any, without: Collection[str] = ()) -> dict[str, Any]:
    """Return a settings dataclass as JSON values, to be hashed or compared with those of an earlier run.

    A field that its class lists in `LATER` is left out while it has the value given there. Every other field is
    included whatever its value, so that a changed default means a different result.

    Args:
        settings: a dataclass instance; its fields may be dataclasses, too.
        without: fields that the result does not depend on.
    """
    plain: dict[str, Any] = json.loads(
        json.dumps({name: value for name, value in _plain(settings).items() if name not in without})
    )
    return plain


def restored(kind: type[Settings], plain: dict[str, Any]) -> Settings:
    """Return settings from their `identity_of`, from this version or one before a field was added.

    Args:
        kind: the settings class.
        plain: its fields, without those of `LATER` that mean the old behaviour.
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
