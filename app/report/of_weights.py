"""PURE: what an evaluation of weights found on one set, in a sentence, and the curves to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.evaluation.image_set import ImageSet
from app.evaluation.measures import Numbers
from app.evaluation.protocols import ROC, Outcome
from app.evaluation.results import TAR, Row
from app.evaluation.separation import equal_error_rate
from app.report.facts import Facts, mapping, number, numbers
from app.report.verdict import NETWORK, PIXELS, Gain

Curves = Mapping[str, tuple[Numbers, Numbers]]  # by label: false and true rates
BASELINES = {"untrained": NETWORK, "pixels": PIXELS}
WEIGHTS_BESIDE = 3  # curves of weights that are drawn where those of two baselines are, too


@dataclass(frozen=True)
class Baseline:
    """What a run measured of another embedding on the same images."""

    over: str
    accuracy: float
    low: float | None  # 95 % interval of the gain of the network that the run measured last
    high: float | None
    label: str
    curve: tuple[Numbers, Numbers]


@dataclass(frozen=True)
class Before:
    """What the run of the best weights measured before, on the same images; nothing where it measured others."""

    baselines: Sequence[Baseline] = ()
    trained: float | None = None  # accuracy of the network that it measured last


def before(facts: Facts | None, images: ImageSet) -> Before:
    """The measurements of a run, if they are of these images and pairs. `facts` is None outside a run."""
    known = facts.verification if facts else {}
    pairs = [number(known.get(f"pairs_of_{kind}")) or 0 for kind in ("one_person", "two_people")]
    if known.get("images") != images.count or sum(pairs) != images.protocol.pairs:
        return Before()
    of = mapping(known.get("of"))
    trained = mapping(of.get("trained"))
    found = []
    for what, over in BASELINES.items():
        own, gain = mapping(of.get(what)), mapping(mapping(trained.get("gain")).get(what))
        accuracy, auc, eer = (number(own.get(key)) for key in ("accuracy", "auc", "eer"))
        far, tar = (numbers(mapping(own.get("curve")).get(key)) for key in ("far", "tar"))
        if accuracy is None or auc is None or eer is None or not far or not tar or len(far) != len(tar):
            continue
        curve = np.array(far), np.array(tar)
        if (curve[0] > 0).all():
            bounds = number(gain.get("low")), number(gain.get("high"))
            found.append(Baseline(over, accuracy, *bounds, _label(over, auc, eer), curve))
    return Before(found, number(trained.get("accuracy")))


def curves(ranked: Sequence[Row], images: ImageSet, known: Before) -> tuple[Curves, int]:
    """The curves of the best weights, then of the baselines; and how many weights are left out.

    `ranked`: best first.
    """
    outcomes = {row.short: row.outcomes.get(images.name) for row in ranked}
    usable = {name: outcome for name, outcome in outcomes.items() if outcome is not None and len(outcome.far)}
    shown = list(usable.items())[: WEIGHTS_BESIDE if known.baselines else len(usable)]
    drawn = {_of_outcome(name, outcome): (outcome.far, outcome.tar) for name, outcome in shown}
    drawn |= {each.label: each.curve for each in known.baselines} if shown else {}
    return drawn, len(usable) - len(shown)


def _of_outcome(name: str, outcome: Outcome) -> str:
    auc = outcome.numbers.get("auc")
    if outcome.axes is not ROC or auc is None:
        return name
    return _label(name, auc, equal_error_rate(outcome.far, outcome.tar))


def _label(name: str, auc: float, eer: float) -> str:
    return f"{name}: AUC {auc:.3f}, EER {eer:.1%}"


def sentence(ranked: Sequence[Row], images: ImageSet, known: Before) -> str:
    """The verdict on one set: what the best weights do there, against what, and what the choice is worth.

    `ranked`: best first on this set.
    """
    rows = [row for row in ranked if images.name in row.outcomes]
    usable = [(row.short, outcome) for row in rows if (outcome := row.outcomes[images.name]) is not None]
    if not usable:
        return f"{images.name}: no weights gave finite embeddings, so nothing was measured."
    name, best = usable[0]
    value = best.numbers[best.headline]
    if value is None:
        return f"{images.name}: too small for {images.protocol.measure}, so nothing was measured."
    against = _against(value, known) if best.headline == "accuracy" else []
    told = f"{images.name}: {name} {_does(best.headline, value)}" + (f": {', and '.join(against)}." if against else ".")
    return told + _choice(value, usable)


def _against(value: float, known: Before) -> list[str]:
    is_last = known.trained is not None and math.isclose(value, known.trained, abs_tol=1e-6)
    bounds = [(each.low, each.high) if is_last else (None, None) for each in known.baselines]
    return [
        Gain(each.over, value - each.accuracy, *low_high).words()
        for each, low_high in zip(known.baselines, bounds, strict=True)
    ]


def _does(headline: str, value: float) -> str:
    if headline == "accuracy":
        return f"judges {value:.1%} of the pairs correctly, where guessing judges 50%"
    if headline == "rank1":
        return f"finds the right person first in {value:.1%} of the searches"
    if headline.startswith(TAR):
        far = headline.removeprefix(TAR)
        return f"accepts {value:.1%} of the pairs of one person, and {far} of those of two people"
    return f"has {headline} {value:.4f}"


def _choice(value: float, usable: Sequence[tuple[str, Outcome]]) -> str:
    """How far the next weights are, and that the best of several looks better than it is."""
    if len(usable) < 2:
        return ""
    name, second = usable[1]
    other = second.numbers[second.headline]
    if other is None:
        return ""
    return (
        f" It is the best of {len(usable)}, {100 * (value - other):.1f} points above {name}. These images chose it: "
        "expect a little less on others."
    )
