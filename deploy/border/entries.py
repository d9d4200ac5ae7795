"""Read a provider's list entry by entry: one that does not fit hides no other, and is not dropped unseen."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from deploy.border.values import LISTED_MOST, shown, text
from deploy.errors import BadAnswer

T = TypeVar("T")
NAME_CHARACTERS = 128
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_UNFIT = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Unreadable:
    """What is readable of an entry that does not fit. It may be a machine that bills."""

    id: str  # "": not readable either
    name: str
    why: str  # one sentence with the entry and the field


def entries(
    value: object,
    what: str,
    make: Callable[[Any], T],
    instead: Callable[[Unreadable], T],
    name_of: Callable[[Any], object] = lambda each: each.get("name"),
) -> list[T]:
    """Convert each entry of a list by `make`, and one that does not fit by `instead`.

    Raises BadAnswer if `value` is no list.
    """
    if not isinstance(value, list) or len(value) > LISTED_MOST:
        raise BadAnswer(f"{what} is no list of at most {LISTED_MOST} entries")
    found = []
    for number, each in enumerate(value):
        try:
            with fitting(f"{what}, entry {number + 1}"):
                found.append(make(each))
        except BadAnswer as error:
            found.append(instead(_rest(each, name_of, error.message)))
    return found


@contextmanager
def fitting(what: str) -> Iterator[None]:
    """Raise BadAnswer for a value in which a field is missing or of another type."""
    try:
        yield
    except _UNFIT as error:
        field = f", {shown(error.args[0])} is missing" if type(error) is KeyError and error.args else ""
        raise BadAnswer(f"{what} has an unexpected form{field}") from error


def identifier(value: object, what: str) -> str:
    """Check the id of a machine or a group of machines. It becomes part of addresses and of file names.

    Raises BadAnswer for any other value.
    """
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise BadAnswer(f"{what} is {shown(value)} instead of letters, digits, - and _")
    return value


def _rest(value: Any, name_of: Callable[[Any], object], why: str) -> Unreadable:
    try:
        id = identifier(value["id"], "id")
    except (BadAnswer, *_UNFIT):
        id = ""
    try:
        name = text(name_of(value), "name", NAME_CHARACTERS)
    except (BadAnswer, *_UNFIT):
        name = ""
    called = f" ({name})" if name and name not in why else ""
    return Unreadable(id, name, f"{why}{called}")
