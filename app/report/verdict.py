"""PURE: the result of a run in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.report.facts import Facts, mapping, number, text

NETWORK, PIXELS = "the untrained network", "raw pixels"


@dataclass(frozen=True)
class Gain:
    """The accuracy above another embedding's, and its 95 % interval if it is known."""

    over: str
    accuracy: float
    low: float | None
    high: float | None

    @property
    def is_sure(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.low is not None and self.low > 0

    def words(self) -> str:
        points = f"{abs(100 * self.accuracy):.1f} points"
        if self.low is None or self.high is None:
            if self.accuracy <= 0:
                return f"not better than {self.over} ({100 * self.accuracy:+.1f} points)"
            return f"{points} above {self.over} (no interval is known)"
        between = f"{100 * self.low:+.1f} to {100 * self.high:+.1f}"
        if self.high < 0:
            return f"{points} below {self.over} ({between})"
        if not self.is_sure:
            return f"not better than {self.over}: the difference of {100 * self.accuracy:+.1f} points may be chance"
        return f"{points} above {self.over} ({between})"


def gains(facts: Facts) -> list[Gain]:
    """The gains over the untrained network and over raw pixels, as far as they were measured."""
    trained = facts.measured("trained")
    known = mapping(mapping(mapping(facts.verification.get("of")).get("trained")).get("gain"))
    found = []
    for what, over in (("untrained", NETWORK), ("pixels", PIXELS)):
        other = facts.measured(what)
        if trained and other:
            low, high = _bounds(mapping(known.get(what)))
            found.append(Gain(over, trained[-1]["accuracy"] - other[-1]["accuracy"], low, high))
    return found


def _bounds(of: Mapping[str, Any]) -> tuple[float | None, float | None]:
    low, high = number(of.get("low")), number(of.get("high"))
    return (None, None) if low is None or high is None or low > high else (low, high)


def interval(facts: Facts) -> tuple[float | None, float | None]:
    """The 95 % interval of the trained network's accuracy; (None, None) if it is not known."""
    return _bounds(mapping(mapping(facts.verification.get("of")).get("trained")))


def state(facts: Facts) -> str:
    """How the run ended: done, stopped, failed, wrong use, or not ended."""
    return {"done": "done", "stopped": "stopped", "failed": "failed", "wrong_use": "failed"}.get(
        text(facts.last("end").get("reason")), "not ended"
    )


def sentence(facts: Facts) -> str:
    """The verdict: how the run ended unless it is done, the accuracy, and how it compares."""
    began = _ending(facts)
    trained = facts.measured("trained")
    if trained:
        low, high = interval(facts)
        spread = "" if low is None or high is None else f" (95% interval {low:.1%} to {high:.1%})"
        against = [gain.words() for gain in gains(facts)]
        told = f"Held-out people are verified with {trained[-1]['accuracy']:.1%} accuracy{spread}"
        return began + (f"{told}: {', and '.join(against)}." if against else f"{told}.")
    for name in facts.sets():
        if measured := facts.measured(name):
            of = f"{text(measured[-1].get('measure')) or 'accuracy'} {measured[-1]['accuracy']:.1%}"
            return f"{began}On {name.removeprefix('sets/')}: {of}. It is not compared with the untrained network."
    return f"{began}No accuracy was measured, so nothing shows whether the network has learned."


def chooses(facts: Facts) -> str:
    """Which people choose the best checkpoint, and what they chose by now; "" if no held-out people were measured."""
    trained = facts.measured("trained")
    if not trained:
        return ""
    rated = [each for each in trained if number(each.get("validation_accuracy")) is not None]
    if not rated:
        return (
            "The same people choose the best checkpoint (--which best): its accuracy is that of the luckiest of "
            "several. train.eval.validation=0.5 lets others choose."
        )
    best = max(rated, key=lambda each: each["validation_accuracy"])
    return (
        "Other held-out people choose the best checkpoint (--which best), train.eval.validation. Their accuracy "
        f"is best after epoch {text(best.get('epoch'))}, with {best['validation_accuracy']:.1%}; that of the people of "
        f"the result is then {best['accuracy']:.1%}."
    )


def _ending(facts: Facts) -> str:
    epochs = number(facts.last("start").get("epochs"))
    done = len(facts.events["epoch"])
    of = f" after {done} of {epochs:.0f} epochs" if epochs is not None else ""
    message = text(facts.last("end").get("message")).rstrip(".")
    why = f": {message}" if message else ""
    return {
        "done": "",
        "stopped": f"The run was stopped{of}{why}. ",
        "failed": f"The run failed{of}{why}. ",
        "not ended": f"The run has not ended, or was killed{of}. ",
    }[state(facts)]
