"""What plain data must look like: a few checks that are put together to a schema, and end in a sentence.

A check takes a value and its name, and raises ValueError if the value is not what it must be.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from spectro.files import quoted

Check: TypeAlias = Callable[[Any, str], None]

LONGEST_TEXT, LONGEST_LIST = 10_000, 100_000
LARGEST = 10**15


def anything(value: Any, name: str) -> None:
    """Take any value."""


def text(most: int = LONGEST_TEXT) -> Check:
    """Take text of at most so many characters."""

    def check(value: Any, name: str) -> None:
        if type(value) is not str or len(value) > most:
            raise _wrong(value, name, f"text of at most {most} characters")

    return check


def optional(of: Check) -> Check:
    """Take null, or a value of a kind."""

    def check(value: Any, name: str) -> None:
        if value is not None:
            of(value, name)

    return check


def one_of(*allowed: str) -> Check:
    """Take one of some words."""

    def check(value: Any, name: str) -> None:
        if value not in allowed:
            raise _wrong(value, name, f"one of {', '.join(allowed)}")

    return check


def flag(value: Any, name: str) -> None:
    """Take true or false."""
    if type(value) is not bool:
        raise _wrong(value, name, "true or false")


def whole(least: int = 0, most: int = LARGEST) -> Check:
    """Take a whole number between two others; 1.0 and true are none."""

    def check(value: Any, name: str) -> None:
        if type(value) is not int or not least <= value <= most:
            raise _wrong(value, name, f"a whole number from {least} to {most}")

    return check


def either(*kinds: Check) -> Check:
    """Take a value of one of some kinds; the error is that of the last."""

    def check(value: Any, name: str) -> None:
        for of in kinds[:-1]:
            try:
                return of(value, name)
            except ValueError:
                continue
        return kinds[-1](value, name)

    return check


def number(least: float, most: float) -> Check:
    """Take a number between two others; NaN and true are none."""

    def check(value: Any, name: str) -> None:
        if type(value) not in (int, float) or not least <= value <= most:
            raise _wrong(value, name, f"a number from {least:g} to {most:g}")

    return check


def many(of: Check, *, least: int = 0, most: int = LONGEST_LIST) -> Check:
    """Take a list of values of a kind, of a length between two others."""

    def check(value: Any, name: str) -> None:
        if type(value) is not list or not least <= len(value) <= most:
            raise _wrong(value, name, f"a list of {least} to {most} entries")
        for place, one in enumerate(value):
            of(one, f"{name}[{place}]")

    return check


def keyed(of: Check) -> Check:
    """Take a mapping of any names to values of a kind."""

    def check(value: Any, name: str) -> None:
        if type(value) is not dict:
            raise _wrong(value, name, "a mapping of names to values")
        for key, one in value.items():
            of(one, f"{name}.{quoted(key)[1:-1]}")

    return check


def record(needed: Mapping[str, Check], possible: Mapping[str, Check] | None = None) -> Check:
    """Take a mapping that has some names, and may have others, each with a value of its kind, and any unknown ones."""
    known = {**needed, **(possible or {})}

    def check(value: Any, name: str) -> None:
        if type(value) is not dict:
            raise _wrong(value, name, "a mapping of names to values")
        before = f"{name}." if name else ""
        if missing := [f"{before}{key}" for key in needed if key not in value]:
            raise ValueError(f"{missing[0]} is missing")
        for key, of in known.items():
            if key in value:
                of(value[key], f"{before}{key}")

    return check


def _wrong(value: Any, name: str, expected: str) -> ValueError:
    return ValueError(f"{name} is {quoted(value)}; it must be {expected}")
