"""Fill in the page's templates. The only laptop module that imports Jinja2, which escapes everything.

Each page has a body that is sent again when it changes, and a frame around it that is sent once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from deploy.border import cut
from deploy.pod.base.text import visible
from deploy.specs.estimate import Compared, duration, plural
from deploy.ui.compare_table import run_rows, setting_rows
from deploy.ui.gauges import BLOCKS
from deploy.ui.plan_table import compared_rows
from deploy.ui.status_table import epoch_of
from deploy.ui.web.charts import chart, number, share

TEXT_CHARACTERS = 20_000  # more than the log and the longest line of a chart have
GIB = 1 << 30
NO_ANSWER = "The machine did not answer, so this may be old"
UNUSABLE = "Folders that are no usable run"
REFRESHED = "Dotted: new pseudo-IDs. The loss before is not comparable with the loss after."
Document = Mapping[str, Any]


def body(template: str, /, **values: Any) -> str:
    """The body of a page, as HTML. `template`: its file, without the ending."""
    return _environment().get_template(f"{template}.html.jinja").render(**values)


def frame(title: str, inside: str, *, live: bool, here: str) -> str:
    """A whole page around a body. `live`: whether the body is to be kept up to date; `here`: its entry in the menu."""
    template = _environment().get_template("frame.html.jinja")
    return template.render(title=title, inside=Markup(inside), live=live, here=here)  # noqa: S704 - made by `body`


def of_run(document: Document) -> str:
    curves = document["curves"]
    loss = chart(
        "Loss",
        [("loss", curves["loss"])],
        form=number,
        across="step",
        marks=curves["refreshes"],
        note=REFRESHED if curves["refreshes"] else "",
    )
    accuracy = chart("Accuracy on held-out people", [("accuracy", curves["accuracy"])], form=share, across="step")
    charts = [each for each in (loss, accuracy) if each]
    phases = compared_rows([Compared(**phase) for phase in document["phases"]])
    return body("run", **document, tiles=tiles(document), charts=charts, phase_rows=phases)


def of_comparison(document: Document) -> str:
    runs: Sequence[Document] = document["runs"]
    lines = {key: [(run["run_id"], run[key]) for run in runs] for key in ("accuracy", "loss")}
    accuracy = chart("Accuracy on held-out people", lines["accuracy"], form=share, across="epoch")
    loss = chart(
        "Loss", lines["loss"], form=number, across="epoch", note="Comparable only between runs of the same loss."
    )
    rows = [row for row in run_rows(runs, BLOCKS) if row[0] not in ("accuracy", "loss")]
    settings = setting_rows(runs, document["settings"])
    charts = [each for each in (accuracy, loss) if each]
    return body("compare", runs=runs, rows=rows, settings=settings, charts=charts, messages=document["messages"])


def tiles(document: Document) -> list[tuple[str, str, str]]:
    """The numbers of a run that matter most: label, value, remark."""
    epoch, epochs, step = document["epoch"], int(document["epochs"] or 0), document["step"]
    found: list[tuple[str, str, str]] = []
    if epoch is not None:
        at_step = "" if step is None else f"step {step}"
        is_done = epochs and epoch >= epochs
        found.append(("progress", plural(epochs, "epoch") if is_done else epoch_of(int(epoch), epochs), at_step))
    if document["accuracy"] is not None:
        found.append(("accuracy", f"{document['accuracy']:.1%}", "on held-out people"))
    if document["loss"] is not None:
        found.append(("loss", f"{document['loss']:.3f}", ""))
    if document["images_per_s"] is not None and document["is_live"]:
        found.append(("speed", f"{document['images_per_s']:.0f}", "images a second"))
    if document["seconds_left"] is not None:
        found.append(("time left", duration(document["seconds_left"]), ""))
    if document["seconds"] is not None:
        found.append(("time", duration(document["seconds"]), ""))
    if gpus := document["gpus"]:
        busy = sum(gpu["busy_pct"] for gpu in gpus) / len(gpus)
        used, every = (sum(gpu[key] for gpu in gpus) / GIB for key in ("used_bytes", "all_bytes"))
        found.append((plural(len(gpus), "GPU"), f"{busy:.0f}% busy", f"{used:.1f} of {every:.1f} GiB"))
    limit = document["limit_usd"]
    if document["spend_usd"] or limit is not None:
        found.append(("cost", f"${document['spend_usd']:.2f}", "no limit" if limit is None else f"of ${limit:.2f}"))
    return found


def _safe(value: Any) -> Any:
    """A value for the page: control characters are shown as codes, and a long text is cut."""
    if isinstance(value, Markup):
        return value
    return cut(visible(value[: TEXT_CHARACTERS + 1]), TEXT_CHARACTERS) if isinstance(value, str) else value


def _clock(at: float | None) -> str:
    return "-" if at is None else time.strftime("%H:%M:%S", time.localtime(at))


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates", encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_safe,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.globals.update(no_answer=NO_ANSWER, unusable=UNUSABLE)
    made.filters.update(clock=_clock, duration=duration)
    return made
