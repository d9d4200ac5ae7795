"""Show a running job: a bar, the loss and its curve, accuracy, GPUs and cost; events scroll by above."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deploy.border import Gpu, loss_curve
from deploy.pod.base.text import visible
from deploy.specs.estimate import duration, plural
from deploy.ui import gauges
from deploy.ui.status_table import epoch_of

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LOADING = "starting: loading PyTorch"
BAR_CHARACTERS = 40
LEAST_BAR = 10
CURVE_EVENTS = 2000  # of which the loss is drawn; of more, every second one is dropped


class Bars:
    """Shows a progress bar over the whole run, and below it what fits: loss, accuracy, GPUs, cost so far and limit."""

    def __init__(self, console: Console, limit_usd: float | None = None) -> None:
        from rich.live import Live

        self.console = console
        self.limit_usd = limit_usd
        self.what, self.speed, self.left = LOADING, "", ""
        self.done, self.total = 0, 0  # steps
        self.epochs = 0
        self.loss: str | None = None
        self.accuracy: str | None = None  # of the newest evaluation
        self.drawn: list[Mapping[str, Any]] = []  # steps and refreshes
        self.gpus: str | None = None
        self.cost: str | None = None
        self.live = Live(console=console, get_renderable=self._shown, refresh_per_second=4)

    def __enter__(self) -> Bars:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def gauges(self, gpus: Sequence[Gpu], spend_usd: float) -> None:
        self.gpus, self.cost = gauges.gpu_words(gpus), gauges.cost_words(spend_usd, self.limit_usd)

    def update(self, text: str, events: Sequence[Mapping[str, Any]]) -> None:  # noqa: ARG002 - the events contain it
        for event in events:
            kind = event.get("event")
            with contextlib.suppress(KeyError, TypeError, ValueError):
                if kind == "start":
                    self._start(event)
                elif kind == "embedding":
                    self.what = f"embedding {event['done'] / event['total']:.0%}"
                elif kind == "step":
                    self._step(event)
                elif kind == "eval" and event.get("what") == "trained":
                    self.accuracy = f"accuracy {event['accuracy']:.1%}"
            if kind in ("step", "mining"):
                self.drawn.append(event)
            words = None if kind in ("embedding", "step") else sentence(event)
            if words:
                self.console.print(visible(words), markup=False)
        if len(self.drawn) > CURVE_EVENTS:
            self.drawn = [each for place, each in enumerate(self.drawn) if place % 2 or each.get("event") == "mining"]
            self.drawn = self.drawn[-CURVE_EVENTS:]

    def _start(self, event: Mapping[str, Any]) -> None:
        self.epochs = int(event.get("epochs", 0))
        self.total = self.epochs * int(event.get("steps_per_epoch", 0))
        self.what = "training"

    def _step(self, event: Mapping[str, Any]) -> None:
        loss = None if event.get("loss") is None else f"loss {event['loss']:.3f}"
        speed, left = f"{event['images_per_s']:.0f} img/s", f"{duration(event.get('seconds_left'))} left"
        what, done = epoch_of(int(event["epoch"]), self.epochs), int(event["step"])
        self.what, self.done, self.loss, self.speed, self.left = what, done, loss, speed, left

    def _shown(self) -> RenderableType:
        """The bar and the lines below it, for the terminal as wide as it is now."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        width = self.console.width
        part = min(self.done / self.total, 1.0) if self.total else 0.0
        told = "  ".join(each for each in (f"{part:4.0%}" if self.total else "", self.speed, self.left) if each)
        # Windows draws the last column on the next line.
        room = min(BAR_CHARACTERS, width - 1 - len(self.what) - len(told) - 2)
        bar = ProgressBar(total=self.total or None, completed=self.done, width=room, pulse=not self.total)
        first = Table.grid(padding=(0, 1, 0, 0))
        first.add_row(Text(self.what), *([bar] if room >= LEAST_BAR else []), Text(told))
        below = gauges.lines_of(self._parts(), width - 1)
        return Group(first, *map(Text, below))

    def _parts(self) -> list[str | None]:
        if self.loss is None:
            return [None, self.accuracy, self.gpus, self.cost]
        curve = gauges.loss_line(
            loss_curve(self.drawn, "step"), gauges.marks(self.console.file, legacy_windows=self.console.legacy_windows)
        )
        return [f"{self.loss} {curve}".rstrip(), self.accuracy, self.gpus, self.cost]


def sentence(event: Mapping[str, Any]) -> str | None:
    """One event of metrics.jsonl as a sentence; None for an event that needs none."""
    try:
        return _words(event)
    except (KeyError, TypeError, ValueError):
        # A display error must not end the following: the code on the machine may be older or newer than this.
        return str(event.get("event"))


def _words(event: Mapping[str, Any]) -> str | None:
    kind = event.get("event")
    if kind == "start":
        resumed = f", resumed from {event['resumed_from']}" if event.get("resumed_from") else ""
        epochs, steps = plural(event["epochs"], "epoch"), plural(event["steps_per_epoch"], "step")
        processes = plural(event["world_size"], "process", "processes")
        return f"{event['train_rows']} images, {epochs} of {steps}, {processes}{resumed}"
    if kind == "skipped":
        return f"step {event['step']} skipped: not finite ({event['in_a_row']} in a row)"
    if kind == "epoch":
        loss = "none" if event["loss"] is None else f"{event['loss']:.3f}"
        warning = "; THE EMBEDDINGS COLLAPSE" if event.get("collapsed") else ""
        return f"epoch {event['epoch']} done: loss {loss}, {duration(event['seconds'])}{warning}"
    if kind == "mining":
        purity = "" if event.get("purity") is None else f", purity {event['purity']:.2f}"
        taken = "" if event.get("accepted", True) else " (not used)"
        return f"mining: {event['count']} pseudo-IDs, coverage {event['coverage']:.2f}{purity}{taken}"
    if kind == "eval":
        rank1 = f", rank-1 {event['rank1']:.4f}" if "rank1" in event else ""
        validation = event.get("validation_accuracy")
        chooses = "" if validation is None else f", validation people {validation:.4f}"
        return f"{event['what'].removeprefix('sets/')}: accuracy {event['accuracy']:.4f}{rank1}{chooses}"
    if kind == "checkpoint":
        return f"checkpoint {event.get('name') or event['file']}"
    return None
