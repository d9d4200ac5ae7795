"""What the user sees: tables and progress on a terminal, plain lines elsewhere, one JSON document with --json."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from deploy.border import Gpu, cut
from deploy.errors import DeployError
from deploy.pod.base.text import visible, visible_log
from deploy.specs.estimate import Compared, duration
from deploy.specs.plan import Plan
from deploy.ui import narrow
from deploy.ui.compare_table import run_rows, setting_rows
from deploy.ui.gauges import marks
from deploy.ui.paths import near
from deploy.ui.plan_table import compared_rows, plan_rows
from deploy.ui.progress import LOADING, Bars
from deploy.ui.status_table import IN_A_LINE, status_rows
from deploy.ui.waiting import LastLine

if TYPE_CHECKING:
    from rich.console import Console

MESSAGE_CHARACTERS = 4000
RAW_CHARACTERS = 1 << 20
EVIDENCE_CHARACTERS = 200  # per line
LABELS = {
    "seconds": "time",
    "seconds_left": "time left",
    "created": "started",
    "spend_usd": "cost",
    "run_usd": "cost",
    "run_id": "run",
}
SPOKEN = {"accuracy": "{:.1%}", "spend_usd": "${:.2f}", "run_usd": "${:.2f}"}


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
        self.last_line = LastLine()

    def say(self, text: str) -> None:
        """Print a message. On a terminal, news of a wait replaces the last message if that reports a wait, too."""
        from rich.control import Control
        from rich.segment import ControlType

        text = visible(text)
        for _ in range(self.last_line.replaced_by(text, self._rows_of)):
            self.console.control(
                Control(ControlType.CARRIAGE_RETURN, (ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2))
            )
        self.console.print(text, markup=False)

    def _rows_of(self, text: str) -> int:
        from rich.cells import cell_len

        if not self.console.is_terminal:
            return 0
        try:  # the terminal's own width: the console's is what COLUMNS says
            width = os.get_terminal_size(self.console.file.fileno()).columns
        except (OSError, ValueError):
            width = self.console.width
        return -(-cell_len(text) // max(1, width))

    def verdict(self, document: Mapping[str, Any]) -> None:
        """Print the verdict of a run from its document: on a terminal, lines end between words.

        That of a failed run begins with the reason, which the command says in its last line.
        """
        if document["verdict"] and document["state"] != "failed":
            self.console.print(visible(document["verdict"]), markup=False, soft_wrap=not self.console.is_terminal)

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

    def raise_first(self, failures: Sequence[DeployError]) -> None:
        """Raise the first failure, if there is one, after the others are printed."""
        for failure in failures[1:]:
            self.complain(f"error: {failure.message}")
        if failures:
            raise failures[0]

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
        if not narrow.fits(columns, cells, self.console.width):
            self.say("\n".join(["", *narrow.paragraphs(columns, cells, self.console.width), ""]))
            return
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column, may_fold in zip(columns, narrow.texts(columns, cells), strict=True):
            table.add_column(column, overflow="fold", no_wrap=not may_fold)
        for row in cells:
            table.add_row(*map(escape, row))
        self.console.print(table, soft_wrap=False)

    def status(self, answer: Mapping[str, Any]) -> None:
        """Print how a run is doing, a row each."""
        if not self.as_json:
            self.table(f"Run {answer['run_id']}", ["what", "value"], status_rows(answer, self._marks()))

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
        columns = [run["run_id"] for run in compared]
        self.table("Runs", ["what", *columns], run_rows(compared, self._marks()))
        if settings:
            self.table("Settings that differ", ["setting", *columns], setting_rows(compared, settings))
        elif sum(run["config"] for run in compared) > 1:
            self.say("the settings do not differ")

    def status_line(self, answer: Mapping[str, Any]) -> None:
        rows = dict(status_rows(answer, self._marks()))
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

    def result(self, document: Mapping[str, Any]) -> None:
        """Print the results of a run, from the document that scripts get."""
        rows = [(what, row["accuracy"], row["rank1"]) for what, row in document["eval"].items() if row]
        if rows:
            self.table("Held-out people: 10-fold verification", ["embedding", "accuracy", "rank-1"], rows)
        if found := document["pseudo_ids"]:
            purity = "not measured" if found["purity"] is None else f"{found['purity']:.3f}"
            none = " (every labelling was refused: the log says why)" if not found["count"] else ""
            self.say(f"pseudo-IDs: {found['count']}, coverage {found['coverage']:.3f}, purity {purity}{none}")
        if document["checkpoint"]:
            self.say(f"checkpoint: {near(document['checkpoint']['path'])}")
        if document["report"]:
            self.say(f"report: {near(document['report'])}")
        if document["seconds"] is not None:
            self.say(f"time: {duration(document['seconds'])}")

    def _marks(self) -> str:
        return marks(self.console.file, legacy_windows=self.console.legacy_windows)

    @property
    def shows_the_log(self) -> bool:
        """Whether a followed job shows its own log lines: there is no terminal to draw progress on."""
        return not self.console.is_terminal

    def follower(self, limit_usd: float | None = None) -> Lines | Bars:
        """Show a job that is followed. `limit_usd`: shown beside its cost."""
        return Lines(self) if self.shows_the_log else Bars(self.console, limit_usd)

    def copying(self, title: str) -> Copying:
        return Copying(self.console, title)


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

    def gauges(self, gpus: Sequence[Gpu], spend_usd: float) -> None:
        """Show nothing: a log has no place for what changes."""


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


def _words_of(key: str) -> str:
    """A document's key as a label. Seconds are shown as minutes and hours, so they are labelled as time."""
    return LABELS.get(key, key.replace("_", " "))


def _spoken(key: str, value: Any) -> str:
    if value is None or (key in ("spend_usd", "run_usd") and not value):
        return "-"
    if key == "created":
        return str(value)[:16].replace("T", " ")  # to the minute
    if key.startswith("seconds"):
        return duration(value)
    return SPOKEN[key].format(value) if key in SPOKEN else _cell(value)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
