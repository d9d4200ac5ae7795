"""Turn a run's facts into the values of the page: tiles, plots and tables. A section without facts is empty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.output import plural
from app.report import charts, verdict
from app.report.charts import Axis, Chart, Line
from app.report.facts import Event, Facts, mapping, number, numbers, text
from app.report.pictures import jpeg
from app.runtime.durations import clock

EMBEDDINGS = {
    "trained": ("trained network", charts.TRAINED),
    "untrained": ("untrained network", charts.UNTRAINED),
    "pixels": ("raw pixels", charts.PIXELS),
}
GIB = 1 << 30
Rows = list[tuple[str, ...]]


def of(facts: Facts) -> dict[str, Any]:
    """All values of the page."""
    return {
        "name": facts.name,
        "state": verdict.state(facts),
        "verdict": verdict.sentence(facts),
        "tiles": tiles(facts),
        "warnings": warnings(facts),
        "notes": notes(facts),
        "curves": [chart for chart in (loss(facts), accuracy(facts), rate(facts)) if chart],
        "separation": separation(facts),
        "histograms": histograms(facts),
        "hardest": hardest(facts),
        "people": {key: number(facts.verification.get(key)) for key in ("images", "people", "resamples")},
        "chooses": verdict.chooses(facts),
        "sets": sets(facts),
        "clusters": clusters(facts),
        "phases": phases(facts),
        "money": money(facts),
        "machine": machine(facts),
        "origin": origin(facts),
        "settings": facts.settings,
        "left_out": [],
    }


def tiles(facts: Facts) -> list[tuple[str, str, str]]:
    """The most important numbers: label, value, and a remark."""
    found = []
    if trained := facts.measured("trained"):
        low, high = verdict.interval(facts)
        spread = "" if low is None or high is None else f"interval {low:.1%} to {high:.1%}"
        found.append(("Accuracy", f"{trained[-1]['accuracy']:.1%}", spread))
    for gain in verdict.gains(facts):
        over = gain.over.removeprefix("the ")
        sure = "" if gain.low is None else ("better" if gain.is_sure else "not proven")
        found.append((f"Against {over}", f"{100 * gain.accuracy:+.1f} points", sure))
    of_trained = mapping(mapping(facts.verification.get("of")).get("trained"))
    if (auc := number(of_trained.get("auc"))) is not None:
        eer = number(of_trained.get("eer"))
        found.append(("AUC", f"{auc:.4f}", "" if eer is None else f"EER {eer:.1%}"))
    mined = [each for each in facts.events["mining"] if each.get("accepted") is True]
    if mined and (coverage := number(mined[-1].get("coverage"))) is not None:
        purity = number(mined[-1].get("purity"))
        found.append(("Images in clusters", f"{coverage:.0%}", "" if purity is None else f"purity {purity:.1%}"))
    seconds = number(facts.last("end").get("seconds"))
    if seconds:
        found.append(("Time", clock(seconds), "of this start" if facts.last("start").get("resumed_from") else ""))
    spend = spent(facts)
    if spend:
        limit = limit_usd(facts)
        found.append(("Cost", f"${spend:.2f}", "" if limit is None else f"limit ${limit:.2f}"))
    return found


def warnings(facts: Facts) -> list[str]:
    found = []
    if facts.last("epoch").get("collapsed") is True:
        found.append("The embeddings collapse: try a lower train.optimizer.lr.")
    if skipped := len(facts.events["skipped"]):
        found.append(f"{plural(skipped, 'step was', 'steps were')} skipped: a loss or gradient was not finite.")
    refused = [each for each in facts.events["mining"] if each.get("accepted") is False]
    if refused:
        why = text(refused[-1].get("why"))
        found.append(f"{plural(len(refused), 'refresh', 'refreshes')} of the pseudo-IDs refused. The newest: {why}")
    return found


def notes(facts: Facts) -> list[str]:
    """What the start of the run noted, such as who chooses the checkpoint: nothing is wrong there."""
    told = facts.last("start").get("notes")
    return [text(note) for note in told[:20] if isinstance(note, str)] if isinstance(told, list) else []


def epochs_of(facts: Facts, event: Event, *, ended: bool = False) -> float | None:
    """The epochs trained at an event. `ended`: the event closes its epoch."""
    epoch = number(event.get("epoch"))
    if epoch is None or ended:
        return None if epoch is None else epoch + 1
    step, an_epoch = number(event.get("step")), number(facts.last("start").get("steps_per_epoch"))
    if step is None or not an_epoch:
        return epoch
    return min(max(step / an_epoch, epoch), epoch + 1)


def _points(facts: Facts, events: Sequence[Event], key: str, *, ended: bool = False) -> tuple[list[float], list[Any]]:
    placed = [(epochs_of(facts, each, ended=ended), number(each.get(key))) for each in events]
    return [x for x, _ in placed if x is not None], [y for x, y in placed if x is not None]


def _known(values: Sequence[Any]) -> bool:
    return any(value is not None for value in values)


def loss(facts: Facts) -> dict[str, Any] | None:
    x, y = _points(facts, facts.events["step"], "loss")
    x_epoch, y_epoch = _points(facts, facts.events["epoch"], "loss", ended=True)
    if not _known(y) and not _known(y_epoch):
        return None
    if len(y) <= len(y_epoch):  # no more detail
        x, y = [], []
    refreshed = [each for each in facts.events["mining"] if each.get("accepted") is True]
    marks = [place for each in refreshed if (place := number(each.get("epoch"))) is not None]
    lines = [
        Line(*_broken(x, y, marks), charts.OTHER),
        Line(*_broken(x_epoch, y_epoch, marks), charts.TRAINED, dots=True),
    ]
    chart = Chart(
        "Loss by epoch", Axis("epochs trained", whole=True), Axis(), [line for line in lines if _known(line.y)], marks
    )
    legend = [*([("other", "steps")] if y else []), *([("trained", "mean of an epoch")] if y_epoch else [])]
    note = "A lower loss alone proves nothing: the held-out accuracy counts."
    if marks:
        legend.append(("other dash", "pseudo-IDs refreshed"))
        note = "Each refresh of the pseudo-IDs changes the task: losses before and after it are not comparable."
    return {"title": "Loss", "svg": charts.draw(chart), "legend": legend, "note": note}


def _broken(x: Sequence[float], y: Sequence[Any], marks: Sequence[float]) -> tuple[list[float], list[Any]]:
    """The points with a gap at each mark, so that no line leads from one side of it to the other."""
    gaps = [(mark, 1, None) for mark in marks]
    joined = sorted([*((place, 0, value) for place, value in zip(x, y, strict=True)), *gaps], key=lambda each: each[:2])
    return [place for place, _, _ in joined], [value for _, _, value in joined]


def accuracy(facts: Facts) -> dict[str, Any] | None:
    lines, legend = [], []
    x, y = _points(facts, facts.measured("trained"), "accuracy", ended=True)
    last = max([*x, number(facts.last("start").get("epochs")) or 1])
    if x:
        lines.append(Line([0, *x], [_value(facts, "untrained"), *y], charts.TRAINED, dots=True))
        legend.append(("trained", "trained network"))
    for what in ("untrained", "pixels"):
        if (value := _value(facts, what)) is not None:
            lines.append(Line([0, last], [value, value], EMBEDDINGS[what][1], dashed=True))
            legend.append((f"{what} dash", EMBEDDINGS[what][0]))
    if not x:
        return None
    x_choosing, y_choosing = _points(facts, facts.measured("trained"), "validation_accuracy", ended=True)
    if _known(y_choosing):
        lines.append(Line(x_choosing, y_choosing, charts.OTHER, dots=True))
        legend.append(("other", "trained network, people who choose the checkpoint"))
    chart = Chart("Held-out accuracy by epoch", Axis("epochs trained", whole=True, least=0), Axis(pct=True), lines)
    note = "10-fold verification accuracy on people that were not trained on; chance is 50%."
    return {"title": "Held-out accuracy", "svg": charts.draw(chart), "legend": legend, "note": note}


def _value(facts: Facts, what: str) -> float | None:
    found = facts.measured(what)
    return float(found[-1]["accuracy"]) if found else None


def rate(facts: Facts) -> dict[str, Any] | None:
    x, y = _points(facts, facts.events["step"], "images_per_s")
    if not _known(y):
        return None
    chart = Chart("Images per second by epoch", Axis("epochs trained", whole=True), Axis(least=0), [Line(x, y)])
    return {
        "title": "Rate",
        "svg": charts.draw(chart),
        "legend": [("trained", "images per second")],
        "note": "Over all processes, while training; the time of mining and evaluation is not in it.",
    }


def separation(facts: Facts) -> dict[str, Any] | None:
    """The ROC curves, and a table of what they say."""
    lines, legend, rows, least = [], [], [], 1.0
    for what, (label, colour) in EMBEDDINGS.items():
        about = mapping(mapping(facts.verification.get("of")).get(what))
        curve = mapping(about.get("curve"))
        far, tar = numbers(curve.get("far")), numbers(curve.get("tar"))
        if far is None or tar is None or len(far) != len(tar) or min(far) <= 0:
            continue
        least = min(least, *far)
        lines.append(Line(far, tar, colour))
        legend.append((what, label))
        values = {key: number(about.get(key)) for key in ("accuracy", "low", "high", "auc", "eer", "threshold")}
        rows.append({"what": what, "label": label, **values, "rates": [_tar_at(far, tar, at) for at in (0.01, 0.001)]})
    if not lines:
        return None
    axes = Axis("false accept rate", log=True, least=max(least, 1e-9) if least < 1 else 0.1, most=1)
    chart = Chart("ROC curves", axes, Axis("true accept rate", pct=True, least=0, most=1.02), lines)
    return {"svg": charts.draw(chart), "legend": legend, "rows": rows}


def _tar_at(far: Sequence[float], tar: Sequence[float], wanted: float) -> float | None:
    """The true accept rate at a false accept rate; None where the pairs are too few to measure it."""
    below = [accepted for rate, accepted in zip(far, tar, strict=True) if rate <= wanted * (1 + 1e-9)]
    return below[-1] if below else None


def histograms(facts: Facts) -> list[dict[str, str]]:
    found = []
    for what, (label, _) in EMBEDDINGS.items():
        about = mapping(mapping(facts.verification.get("of")).get(what))
        scores = mapping(about.get("scores"))
        least, most = number(scores.get("least")), number(scores.get("most"))
        same, other = numbers(scores.get("same")), numbers(scores.get("different"))
        if least is None or most is None or least >= most or same is None or other is None or len(same) != len(other):
            continue
        edges = [least + (most - least) * place / len(same) for place in range(len(same) + 1)]
        of_same, of_other = ([each / (sum(counts) or 1) for each in counts] for counts in (same, other))
        svg = charts.histogram(f"Scores of the {label}", edges, of_same, of_other, number(about.get("threshold")))
        found.append({"label": label, "svg": svg})
    return found


def hardest(facts: Facts) -> list[dict[str, Any]]:
    """The hardest pairs of each kind that have both pictures."""
    titles = {
        "two_people": ("Two people, but similar", "false accept"),
        "one_person": ("One person, but different", "false reject"),
    }
    found = []
    for kind, (title, mistake) in titles.items():
        listed = mapping(facts.verification.get("hardest")).get(kind)
        pairs = []
        for each in map(mapping, listed[:20] if isinstance(listed, list) else []):
            left, right, cosine = jpeg(each.get("left")), jpeg(each.get("right")), number(each.get("cosine"))
            if left and right and cosine is not None:
                pairs.append({"left": left, "right": right, "cosine": cosine, "wrong": each.get("wrong") is True})
        if pairs:
            found.append({"title": title, "mistake": mistake, "pairs": pairs})
    return found


def sets(facts: Facts) -> Rows:
    """The newest result on each evaluated set."""
    rows: Rows = []
    for name in facts.sets():
        if measured := facts.measured(name):
            last = measured[-1]
            auc, threshold = number(last.get("auc")), number(last.get("threshold"))
            rows.append(
                (
                    name.removeprefix("sets/"),
                    text(last.get("measure")) or "accuracy",
                    f"{last['accuracy']:.2%}",
                    "-" if auc is None else f"{auc:.4f}",
                    "-" if threshold is None else f"{threshold:.4f}",
                )
            )
    return rows


def clusters(facts: Facts) -> dict[str, Any] | None:
    """The pseudo-IDs over the epochs, the sizes of the newest clusters, and a table of the refreshes."""
    mined = [each for each in facts.events["mining"] if number(each.get("epoch")) is not None]
    if not mined:
        return None
    x = [number(each.get("epoch")) or 0 for each in mined]
    of_key = {key: [number(each.get(key)) for each in mined] for key in ("coverage", "churn", "purity")}
    colours = {"coverage": "trained", "churn": "untrained", "purity": "pixels"}
    shown = [key for key in of_key if _known(of_key[key])]
    lines = [Line(x, of_key[key], EMBEDDINGS[colours[key]][1], dots=True) for key in shown]
    chart = Chart("Clusters by epoch", Axis("epochs trained", whole=True), Axis(pct=True, least=0, most=1.03), lines)
    sizes = {text(name): number(count) for name, count in list(mapping(mined[-1].get("sizes")).items())[:20]}
    known = {name: count for name, count in sizes.items() if count is not None and name.replace("-", "").isdecimal()}
    rows = [
        (
            text(each.get("epoch")),
            _whole(each.get("count")),
            *(pct(number(each.get(key))) for key in ("coverage", "churn", "purity")),
            _whole(each.get("largest")),
            "used" if each.get("accepted") is True else "refused",
        )
        for each in [*mined[:1], *mined[1:][-11:]]
    ]
    return {
        "svg": charts.draw(chart) if lines else "",
        "legend": [(colours[key], key) for key in shown],
        "sizes": charts.cluster_sizes(list(known), list(known.values())) if known else "",
        "rows": rows,
        "more": max(len(mined) - 12, 0),
    }


def pct(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _whole(value: object) -> str:
    found = number(value)
    return "-" if found is None else f"{found:,.0f}"


def spent(facts: Facts) -> float | None:
    """Dollars so far: by the launcher's record, which knows all machines and attempts, or the supervisor's status."""
    by_machine = [number(usd) for usd in mapping(facts.run.get("spend")).values()]
    told = number(facts.status.get("spend_usd"))
    known = [usd for usd in by_machine if usd is not None]
    return max(sum(known), told or 0) if known or told is not None else None


def limit_usd(facts: Facts) -> float | None:
    return number(mapping(facts.plan.get("limits")).get("max_usd"))


def money(facts: Facts) -> dict[str, Any] | None:
    """Cost, limit and expectation in dollars; None for a run that costs nothing."""
    limit, spend = limit_usd(facts), spent(facts)
    by_hour, expected = (number(facts.plan.get(key)) for key in ("usd_per_hour", "expected_usd"))
    if not spend and not by_hour:
        return None
    used = min((spend or 0) / limit, 1) if limit and limit > 0 else None
    return {"spent": spend or 0, "limit": limit, "used": used, "expected": expected, "by_hour": by_hour}


def phases(facts: Facts) -> Rows:
    """Expected and taken time of each phase of the plan."""
    taken = mapping(facts.run.get("phases"))
    listed = facts.plan.get("phases")
    rows = []
    for each in map(mapping, listed[:20] if isinstance(listed, list) else []):
        expected, name = number(each.get("seconds")), text(each.get("name"))
        seconds = number(taken.get(name))
        if seconds is None and name == "training":
            seconds = number(facts.last("end").get("seconds"))
        if expected is not None or seconds is not None:
            rows.append((name, *("-" if value is None else clock(value) for value in (expected, seconds))))
    return rows


def machine(facts: Facts) -> Rows:
    """The machine, and its use as the supervisor last saw it."""
    start, plan, status = facts.last("start"), facts.plan, facts.status
    rows = [
        ("machine", text(plan.get("machine"))),
        ("GPU", f"{text(plan.get('gpus'))} x {text(plan.get('gpu'))}" if plan.get("gpu") else ""),
        ("processes", text(start.get("world_size"))),
        ("device", text(start.get("device"))),
        ("precision", text(start.get("precision"))),
        ("restarts", text(status.get("restarts")) if number(status.get("restarts")) else ""),
    ]
    gpus = status.get("gpus")
    for place, each in enumerate(map(mapping, gpus[:16] if isinstance(gpus, list) else [])):
        use, used, whole = (number(each.get(key)) for key in ("utilization_pct", "memory_used_bytes", "memory_bytes"))
        parts = [f"{use:.0f}% busy"] if use is not None else []
        parts += [f"{used / GIB:.1f} of {whole / GIB:.1f} GiB"] if used is not None and whole is not None else []
        rows.append((f"GPU {place}, last seen", ", ".join(parts)))
    return [row for row in rows if row[1]]


def origin(facts: Facts) -> Rows:
    """What was trained from what: data, code, and the newest checkpoint."""
    start, saved = facts.last("start"), facts.last("checkpoint")
    fraction, rows = number(start.get("fraction")), number(start.get("train_rows"))
    code = mapping(facts.plan.get("code"))
    commit = text(code.get("commit")) or text(facts.setting("run.commit"))
    changed = number(code.get("changed_files"))
    found = [
        ("data set", text(start.get("dataset_id"))),
        ("fraction of the data", "" if fraction is None else f"{fraction:g}"),
        ("images trained on", "" if rows is None else f"{rows:,.0f}"),
        ("commit", commit + (f" and {plural(int(changed), 'changed file', 'changed files')}" if changed else "")),
        ("resumed from", text(start.get("resumed_from"))),
        ("newest checkpoint", text(saved.get("file"))),
        ("its SHA-256", text(saved.get("sha256"))),
    ]
    return [row for row in found if row[1]]
