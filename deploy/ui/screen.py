"""What the user sees: tables and progress on a terminal, plain lines elsewhere, one JSON document with --json."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from deploy.border import cut
from deploy.errors import DeployError
from deploy.pod.base.text import visible, visible_log
from deploy.specs.estimate import Compared, duration
from deploy.specs.plan import Plan
from deploy.ui.compare_table import run_rows, setting_rows
from deploy.ui.plan_table import compared_rows, plan_rows
from deploy.ui.status_table import IN_A_LINE, epoch_of, status_rows
from deploy.ui.waiting import LastLine

if TYPE_CHECKING:
    from rich.console import Console

MESSAGE_CHARACTERS = 4000
RAW_CHARACTERS = 1 << 20
EVIDENCE_CHARACTERS = 200  # per line
LABELS = {"seconds": "time", "seconds_left": "time left", "created": "started", "spend_usd": "cost", "run_id": "run"}
SPOKEN = {"accuracy": "{:.1%}", "spend_usd": "${:.2f}"}
LOADING = "starting: loading PyTorch"


class Follower(Protocol):
    """Shows a running job; used as a context manager."""

    def __enter__(self) -> Follower: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, text: str, events: Sequence[Mapping[str, Any]]) -> None: ...


class Screen:
    """Prints messages, tables and documents. Control characters are shown as text, so that terminals ignore them.

    With `as_json` messages go to stderr, and stdout gets exactly one document. `out` takes
    messages and tables instead of the terminal.
    """

    def __init__(self, as_json: bool = False, out: TextIO | None = None) -> None:
        from rich.console import Console

        self.as_json = as_json
        self.documented = False
        for stream in (sys.stdout, sys.stderr):
            # A name that the terminal cannot encode must not end a command.
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        self.console: Console = Console(stderr=as_json, file=out, highlight=False, soft_wrap=True)
        self.last_line = LastLine(self.console)

    def say(self, text: str) -> None:
        """Print a message. On a terminal, news of a wait replaces the last message if that reports a wait, too."""
        text = visible(text)
        self.last_line.before(text)
        self.console.print(text, markup=False)

    def raw(self, text: str) -> None:
        """Print another program's output as plain text: control characters are shown, colours are removed."""
        self.last_line.leave()
        for start in range(0, len(text), RAW_CHARACTERS):  # escapes become four times as long
            self.console.file.write(visible_log(text[start : start + RAW_CHARACTERS]))
        self.console.file.flush()

    def complain(self, text: str) -> None:
        """Print a message to stderr, apart from the log or document on stdout."""
        self.last_line.leave()
        print(visible(text), file=sys.stderr, flush=True)

    def commands(self, commands: Sequence[tuple[str, str]]) -> None:
        """Print what can be typed next, one line each: purpose, then command."""
        width = max((len(purpose) for purpose, _ in commands), default=0)
        for purpose, words in [] if self.as_json else commands:
            self.say(f"  {purpose.ljust(width)}  {words}")

    def document(self, value: Any) -> None:
        """Print the answer as JSON, once, if --json is given."""
        if self.as_json and not self.documented:
            self.documented = True
            print(json.dumps(value, ensure_ascii=True), flush=True)

    def error(self, error: DeployError) -> None:
        """Print one message: what failed, the last lines of evidence, the next command to type."""
        self.failure(error)
        self.document({"error": error.message, "exit_code": error.exit_code, "next": error.next_command})

    def failure(self, error: DeployError) -> None:
        """Print the message of an error after which the command goes on, without a document."""
        self.last_line.leave()
        lines = [f"error: {cut(visible(error.message), MESSAGE_CHARACTERS)}"]
        lines += [f"  | {cut(visible(line, newlines=False), EVIDENCE_CHARACTERS)}" for line in error.evidence]
        lines += [f"next: {error.next_command}"] if error.next_command else []
        print("\n".join(lines), file=sys.stderr, flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print a table on a terminal; elsewhere aligned lines without wrapping, for logs and pipes."""
        cells = [[visible(_cell(value), newlines=False) for value in row] for row in rows]
        if not self.console.is_terminal:
            widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
            self.say("\n".join([title, *(_aligned(row, widths) for row in [list(columns), *cells])]))
            return
        from rich import box
        from rich.markup import escape
        from rich.table import Table

        self.say(title)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for place, column in enumerate(columns):
            table.add_column(column, overflow="fold", no_wrap=place == 0)  # users copy the first column
        for row in cells:
            table.add_row(*map(escape, row))
        self.console.print(table, soft_wrap=False)

    def status(self, answer: Mapping[str, Any]) -> None:
        """Print how a run is doing, a row each."""
        if not self.as_json:
            self.table(f"Run {answer['run_id']}", ["what", "value"], status_rows(answer))

    def rows(self, title: str, things: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        """Print several things of one kind, a row each. People see the given columns; the document holds all."""
        self.document(list(things))
        if self.as_json:
            return
        # Leave out columns in which nothing is known.
        known = [key for key in columns if any(thing[key] is not None for thing in things)] or ["none yet"]
        self.table(
            title, list(map(_words_of, known)), [[_spoken(key, thing[key]) for key in known] for thing in things]
        )

    def comparison(self, document: Mapping[str, Any]) -> None:
        """Print runs side by side, then the settings in which they differ."""
        if self.as_json:
            return
        compared, settings = document["runs"], document["settings"]
        encoding = (getattr(self.console.file, "encoding", None) or "ascii").lower()
        columns = [run["run_id"] for run in compared]
        self.table("Runs", ["what", *columns], run_rows(compared, ascii_only=not encoding.startswith("utf")))
        if settings:
            self.table("Settings that differ", ["setting", *columns], setting_rows(compared, settings))
        elif sum(run["config"] for run in compared) > 1:
            self.say("the settings do not differ")

    def status_line(self, answer: Mapping[str, Any]) -> None:
        rows = dict(status_rows(answer))
        self.say("  ".join(f"{what} {rows[what]}" for what in IN_A_LINE if what in rows))

    def plan(self, plan: Plan, *, with_command: bool = False) -> None:
        command = [("command", " ".join(plan.argv))] if with_command else []
        self.table(f"Plan of {plan.run_id}", ["what", "decided"], [*plan_rows(plan), *command])

    def ask(self, question: str) -> bool:
        """Ask the person at the terminal a yes-or-no question."""
        self.last_line.leave()
        print(f"{visible(question)} [yes/no] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def compared(self, parts: Sequence[Compared]) -> None:
        """Print expected and actual time and cost of each phase of a run."""
        if parts and not self.as_json:
            self.table(
                "Expected and taken", ["part", "expected", "taken", "expected cost", "cost"], compared_rows(parts)
            )

    def result(self, document: Mapping[str, Any], least_gain: float | None = None) -> None:
        """Print the results of a run, from the document that scripts get. `least_gain`: as of `verdict`."""
        rows = [(what, row["accuracy"], row["rank1"]) for what, row in document["eval"].items() if row]
        if rows:
            self.table("Held-out people: 10-fold verification", ["embedding", "accuracy", "rank-1"], rows)
            if told := verdict(document["eval"], least_gain):
                self.say(told)
        if found := document["pseudo_ids"]:
            purity = "not measured" if found["purity"] is None else f"{found['purity']:.3f}"
            none = " (every labelling was refused: the log says why)" if not found["count"] else ""
            self.say(f"pseudo-IDs: {found['count']}, coverage {found['coverage']:.3f}, purity {purity}{none}")
        if document["checkpoint"]:
            self.say(f"checkpoint: {document['checkpoint']['path']}")
        if document["report"]:
            self.say(f"report: {document['report']}")
        if document["seconds"] is not None:
            self.say(f"time: {duration(document['seconds'])}")

    @property
    def shows_the_log(self) -> bool:
        """Whether a followed job shows its own log lines: there is no terminal to draw progress on."""
        return not self.console.is_terminal

    def follower(self) -> Follower:
        return Lines(self) if self.shows_the_log else Bars(self.console)

    def copying(self, title: str) -> Copying:
        return Copying(self.console, title)


def verdict(measured: Mapping[str, Mapping[str, float] | None], least_gain: float | None = None) -> str | None:
    """One sentence that compares the trained network's accuracy with the untrained one's and that of raw pixels.

    `least_gain`: the lower end of the interval of the difference between the networks, if it is known. Returns None if
    one of the two networks was not measured.
    """
    trained, untrained, pixels = (measured.get(name) for name in ("trained", "untrained", "pixels"))
    if not trained or not untrained:
        return None
    gain = trained["accuracy"] - untrained["accuracy"]
    reached = f"{trained['accuracy']:.1%}"
    if gain <= 0:
        return f"{reached}: no better than the untrained network ({untrained['accuracy']:.1%}); train for more epochs"
    if least_gain is not None and least_gain <= 0:
        chance = f"the difference of {100 * gain:+.1f} points may be chance"
        return f"{reached}: not better than the untrained network: {chance}"
    told = f"{reached}: {100 * gain:.1f} points above the untrained network"
    if pixels and trained["accuracy"] <= pixels["accuracy"]:
        return f"{told}, and no better than raw pixels ({pixels['accuracy']:.1%})"
    return told


class Lines:
    """Shows the job's own log lines as they come."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen

    def __enter__(self) -> Lines:
        self.screen.say(f"{LOADING} ...")
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, text: str, events: Sequence[Mapping[str, Any]]) -> None:  # noqa: ARG002 - the log contains them
        self.screen.raw(text)


class Bars:
    """Shows a progress bar over the whole run with img/s and time left; events scroll by above it."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        # ASCII except for the bar, which rich draws in ASCII too if the terminal's encoding requires it.
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[left]}"),
            console=console,
            refresh_per_second=4,
        )
        self.task = self.progress.add_task(LOADING, total=None, speed="", left="")
        self.epochs = 0
        self.accuracy = ""  # of the newest evaluation
        self.newest: Mapping[str, Any] | None = None  # the newest step

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, text: str, events: Sequence[Mapping[str, Any]]) -> None:  # noqa: ARG002 - the events contain it
        for event in events:
            kind = event.get("event")
            if kind == "start":
                self.epochs = int(event.get("epochs", 0))
                steps = self.epochs * int(event.get("steps_per_epoch", 0))
                self.progress.update(self.task, total=steps or None, description="training")
            elif kind == "embedding":
                with contextlib.suppress(KeyError, TypeError, ValueError):
                    self.progress.update(self.task, description=_embedding(event))
            elif kind == "step":
                with contextlib.suppress(KeyError, TypeError, ValueError):
                    self._step(event)
            else:
                if event.get("what") == "trained":
                    with contextlib.suppress(KeyError, TypeError, ValueError):
                        self.accuracy = f" accuracy {event['accuracy']:.1%}"
                        if self.newest:
                            self._step(self.newest)
                words = sentence(event)
                if words:
                    self.progress.console.print(visible(words), markup=False)

    def _step(self, event: Mapping[str, Any]) -> None:
        self.progress.update(
            self.task,
            completed=int(event["step"]),
            description=f"{epoch_of(int(event['epoch']), self.epochs)} loss {event['loss']:.3f}{self.accuracy}",
            speed=f"{event['images_per_s']:.0f} img/s",
            left=f"{duration(event.get('seconds_left'))} left",
        )
        self.newest = event


class Copying:
    """Shows a progress bar over bytes. Silent without a terminal: a message follows the copy anyway."""

    def __init__(self, console: Console, title: str) -> None:
        from rich.markup import escape
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.task = self.progress.add_task(escape(visible(title)), total=None)

    def __enter__(self) -> Copying:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, done_bytes: int, all_bytes: int) -> None:
        self.progress.update(self.task, completed=done_bytes, total=all_bytes)


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
        return (
            f"{event['train_rows']} images, {event['epochs']} epochs of {event['steps_per_epoch']} steps, "
            f"{event['world_size']} processes{resumed}"
        )
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


def _embedding(event: Mapping[str, Any]) -> str:
    return f"embedding {event['done'] / event['total']:.0%}"


def _words_of(key: str) -> str:
    """A document's key as a label. Seconds are shown as minutes and hours, so they are labelled as time."""
    return LABELS.get(key, key.replace("_", " "))


def _spoken(key: str, value: Any) -> str:
    if value is None or (key == "spend_usd" and not value):
        return "-"
    if key == "created":
        return str(value)[:16].replace("T", " ")  # to the minute
    if key.startswith("seconds"):
        return duration(value)
    return SPOKEN[key].format(value) if key in SPOKEN else _cell(value)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
