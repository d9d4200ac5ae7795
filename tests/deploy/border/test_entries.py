"""One entry of a provider's list that does not fit is told, and neither hides the others nor disappears."""

from __future__ import annotations

from typing import Any

import pytest

from deploy import border
from deploy.errors import BadAnswer

BAD: list[Any] = [
    None, 5, "x", [], {}, {"id": 1, "name": "n"}, {"id": "../../x", "name": "n"}, {"id": "p2"},
    {"id": "p2", "name": 5}, {"id": "p2", "name": "n", "cost": "lots"}, {"id": "p2", "name": "n", "cost": float("inf")},
    {"id": "p2", "name": "n", "cost": 10**400},
]  # fmt: skip


def make(value: Any) -> tuple[str, str, float]:
    name = border.text(value["name"], "name", 20)
    return border.identifier(value["id"], "id"), name, border.number(value.get("cost", 0), f"pod {name}, cost", 0, 100)


@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_an_entry_that_does_not_fit_hides_no_other(bad: Any) -> None:
    good = {"id": "p1", "name": "one", "cost": 2}
    first, second, third = border.entries([good, bad, good], "the list", make, lambda each: each)  # type: ignore[return-value, arg-type]
    assert first == third == ("p1", "one", 2.0)
    assert isinstance(second, border.Unreadable)
    assert (second.id, second.name) in [("", ""), ("", "n"), ("p2", ""), ("p2", "n")]
    assert second.why
    assert "\n" not in second.why
    if isinstance(bad, dict) and bad.get("id") == "p2":
        assert second.id == "p2"


@pytest.mark.parametrize("value", [None, {}, "x", 5, [0] * 10_001])
def test_what_is_no_list_is_refused(value: Any) -> None:
    with pytest.raises(BadAnswer, match="the list is no list"):
        border.entries(value, "the list", make, lambda each: each)  # type: ignore[return-value, arg-type]


def test_escapes_in_an_unreadable_name_are_shown() -> None:
    (found,) = border.entries([{"id": "p", "name": "\x1b[2J", "cost": "x"}], "l", make, lambda each: each)  # type: ignore[return-value, arg-type]
    assert isinstance(found, border.Unreadable)
    assert found.name == "\\x1b[2J"
