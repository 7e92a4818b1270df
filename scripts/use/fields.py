# SPDX-License-Identifier: Apache-2.0
"""Kinds of values in the JSON files of a checkpoint: a file says anything, and of any type."""

import math
import reprlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeGuard

# A value of a damaged file may be of any size and depth, where repr() raises.
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 80, 80
show = _SHORT.repr


def printable(text: str) -> str:
    """What a terminal shows on one line: names of a file may have line ends and half characters."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


class Kind(NamedTuple):
    """What a field may be, and the words for that."""

    fits: Callable[[Any], bool]
    words: str


def is_integer(value: Any, least: int = 1) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> bool:
    """Python's numbers, of which true is one; not NaN, and nothing infinite."""
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def is_names(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(is_integer(item, 0) for item in value)


def one_of(*values: Any) -> Kind:
    words = ", ".join("null" if value is None else str(value) for value in values)
    return Kind(
        lambda value: any(type(value) is type(one) and value == one for one in values),
        f"one of {words}" if len(values) > 1 else words,
    )


def integer(least: int, words: str = "") -> Kind:
    return Kind(lambda value: is_integer(value, least), words or f"an integer from {least}")


def number(fits: Callable[[Any], bool], words: str) -> Kind:
    return Kind(lambda value: is_number(value) and fits(value), words)


def nullable(kind: Kind) -> Kind:
    return Kind(lambda value: value is None or kind.fits(value), f"{kind.words}, or null")


def either(*kinds: Kind) -> Kind:
    words = ", or ".join(kind.words for kind in kinds)
    return Kind(lambda value: any(kind.fits(value) for kind in kinds), words)


COUNT = integer(1, "an integer above 0")
FLAG = Kind(lambda value: isinstance(value, bool), "true or false")
FRACTION = Kind(
    lambda value: is_number(value) and not isinstance(value, bool) and value >= 0,
    "a number that is not negative",
)
POSITIVE = Kind(
    lambda value: is_number(value) and not isinstance(value, bool) and value > 0,
    "a number above 0",
)
ID = integer(0)
TEXT = Kind(lambda value: isinstance(value, str), "a string")
OBJECT = Kind(lambda value: isinstance(value, dict), "an object")
NAMES = Kind(is_names, "a list of names")
INTEGERS = Kind(
    lambda value: (
        isinstance(value, list)
        and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    ),
    "a list of integers",
)
PLAIN = Kind(lambda value: not isinstance(value, list | dict), "true or false")
"""For switches, of which any value is taken that can be hashed."""


def problems(kinds: Mapping[str, Kind], values: Mapping[str, Any], part: str = "") -> Iterator[str]:
    """A sentence for each field that is there and not of its kind."""
    for name, kind in kinds.items():
        if name in values and not kind.fits(values[name]):
            yield f"{part}{name} is {show(values[name])}, it is {kind.words}"
