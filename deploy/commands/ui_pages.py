"""What the page of all runs shows: runs, comparisons, bills and targets; and its one action, to stop a run.

Nothing here waits for a machine or a provider: they are asked in threads, and the documents say when.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from deploy import border
from deploy.billing import costs
from deploy.border import Name
from deploy.commands import compare as comparing
from deploy.commands import ps, runs, target
from deploy.commands import stop as ending
from deploy.errors import BadAnswer, DeployError, StepFailed, WrongUse
from deploy.pod.base.folder import FINAL_STATES, RunFolder
from deploy.runs import documents, records
from deploy.runs.live import Live, Look
from deploy.runs.records import Record
from deploy.ui.screen import Screen

MESSAGES_MOST = 100
TARGETS_S = 5.0  # the files of targets are read again after this long
BROKEN_MOST = 200  # folders without a usable record that are listed
WORDS_CHARACTERS = 300

Document = dict[str, Any]


class Told(Screen):
    """A screen that keeps what a command says, for the page. Progress is not kept."""

    def __init__(self) -> None:
        super().__init__(as_json=True, out=io.StringIO())
        self.messages: list[str] = []

    def say(self, text: str) -> None:
        if len(self.messages) < MESSAGES_MOST:
            self.messages.append(border.cut(text, border.REASON_CHARACTERS))

    def raw(self, text: str) -> None:
        self.say(text)

    def complain(self, text: str) -> None:
        self.say(text)

    def document(self, value: Any) -> None:
        """Print nothing: the caller gets the document."""


@dataclass(frozen=True)
class Asked:
    """The newest answer of something slow. `asking`: since when it is being asked again; times in Unix seconds."""

    rows: Sequence[Mapping[str, Any]] = ()
    messages: Sequence[str] = ()
    at: float | None = None
    asking: float | None = None


@dataclass
class Ending:
    """A stop that was asked for from the page."""

    screen: Told = field(default_factory=Told)
    problem: str | None = None
    is_over: bool = False


class Pages:
    """The documents of the page. Every method returns at once."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.live = Live(project)
        self.bills = Asked()
        self._endings: dict[str, Ending] = {}
        self._accuracies: dict[str, tuple[tuple[int, int], float | None]] = {}
        self._targets: tuple[float, list[Document]] = (-TARGETS_S, [])
        self._lock = threading.Lock()

    def runs(self, sort: str) -> Document:
        """All runs, newest first or largest first by `sort`, and the folders that hold no usable record."""
        rows, broken, shown = [], [], []
        for name, record in records.each_folder(self.live.book):
            wrong = record if isinstance(record, str) else _misnamed(name, record)
            if isinstance(record, str) or wrong:
                broken.append({"name": border.cut(name, border.REASON_CHARACTERS), "why": wrong})
                continue
            look = self.live.want(record)
            rows.append(self._row(record, look))
            shown.append(record)
        usd = costs.by_run(shown)
        rows = [{**row, "run_usd": usd[row["run_id"]]} for row in rows]
        rows.sort(key=lambda row: (records.moment(row["created"]), row["run_id"]), reverse=True)
        if sort in runs.SORTED:
            rows.sort(key=runs.SORTED[sort], reverse=True)
        sorts = list(runs.SORTED)
        return {
            "rows": rows,
            "broken": broken[:BROKEN_MOST],
            "sort": sort if sort in sorts else sorts[0],
            "sorts": sorts,
        }

    def run(self, run_id: str) -> Document:
        """One run: state, numbers, curves and log. Raises WrongUse for an unknown run or a folder without a record."""
        record = self._record(run_id)
        look = self.live.want(record, whole=True)
        story = self.live.story(record)
        plan = records.carried_out(self.live.book, run_id)
        parts = records.compared(self.live.book, record) if _is_whole(plan) else ()
        told = documents.of_status(record, look.status, story.events, parts, None)
        return {
            **self._row(record, look),
            **{key: told[key] for key in ("epoch", "epochs", "step", "images_per_s", "seconds_left", "loss")},
            "accuracy": told["accuracy"],
            "attempt": record.attempt,
            "phases": told["phases"],
            "asked_at": look.at,
            "gpus": [asdict(gpu) for gpu in look.status.gpus] if look.status else [],
            "limit_usd": records.limit_usd(self.live.book, run_id),
            "curves": {"loss": story.loss, "accuracy": story.accuracy, "refreshes": story.refreshes},
            "log": story.log,
            "report": self._report(record) is not None,
            "ending": self._ending(run_id),
            "commands": documents.next_commands(record),
        }

    def compare(self, names: Sequence[str]) -> Document:
        """The answer of `compare`. Raises WrongUse as it does."""
        told = Told()
        return {**comparing.compare(self.project, names, told), "messages": told.messages}

    def machines(self) -> Document:
        """What costs money, as last answered, and the targets."""
        at, found = self._targets
        if time.monotonic() - at >= TARGETS_S:
            found = target.listed(self.project)
            self._targets = (time.monotonic(), found)
        return {"bills": asdict(self.bills), "targets": found}

    def ask_for_bills(self) -> None:
        """Ask the providers in a thread, unless they are being asked already."""
        with self._lock:
            if self.bills.asking is not None:
                return
            self.bills = replace(self.bills, asking=time.time())
        threading.Thread(target=self._ask_for_bills, name="ask for bills", daemon=True).start()

    def report(self, run_id: str) -> bytes:
        """The report of a run. Raises WrongUse if there is none, or if it is not one of ours.

        Raises StepFailed if it cannot be read.
        """
        path = self._report(self._record(run_id))
        try:
            if path is None or not border.is_report(path):
                raise WrongUse(f"run {run_id} has no report on this computer yet: its end writes it")
            with open(path, "rb") as file:
                return file.read(border.FILE_BYTES["report.html"])
        except OSError as error:
            raise StepFailed(f"the report of run {run_id} cannot be read: {error.strerror}") from error

    def stop(self, run_id: str) -> None:
        """Stop a run as `stop` does, in a thread. Raises WrongUse for an unknown run, or one that is over."""
        record = self._record(run_id)
        if record.state in FINAL_STATES:
            raise WrongUse(f"run {run_id} is {record.state}: there is nothing to stop")
        with self._lock:
            known = self._endings.get(run_id)
            if known is not None and not known.is_over:
                return
            self._endings[run_id] = Ending()
        arguments = (record, self._endings[run_id])
        threading.Thread(target=self._stop, args=arguments, name=f"stop {run_id}", daemon=True).start()

    def _stop(self, record: Record, ending_: Ending) -> None:
        try:
            with self.live.asker(record.target).asking:
                ending.stop(self.project, record.target, record.run_id, ending_.screen)
        except Exception as error:  # of any kind: the page shows it
            ending_.problem = _words(error)
        ending_.is_over = True

    def _ask_for_bills(self) -> None:
        told = Told()
        rows: Sequence[Mapping[str, Any]] = ()
        try:
            rows = ps.bills(self.project, told)
        except Exception as error:  # of any kind: the page shows it, and can ask again
            told.complain(_words(error))
        self.bills = Asked(rows, tuple(told.messages), time.time())

    def _record(self, run_id: str) -> Record:
        shown, folder = border.cut(run_id, 100), None
        with contextlib.suppress(BadAnswer):  # the name would leave the folder of runs
            folder = self.live.book / Name(run_id)
        if folder is None or not os.path.isdir(folder):
            raise WrongUse(f"there is no run '{shown}' on this computer")
        found = records.record_in(folder)
        if isinstance(found, str):
            raise WrongUse(f"run '{shown}' cannot be shown: {found}")
        if wrong := _misnamed(run_id, found):
            raise WrongUse(f"run '{shown}' cannot be shown: {wrong}")
        return found

    def _row(self, record: Record, look: Look) -> Document:
        row = documents.row(record)
        texts = {
            key: border.cut(str(row[key]), WORDS_CHARACTERS)
            for key in ("created", "state", "target", "name", "reason")
            if row[key] is not None
        }
        is_live = record.state not in FINAL_STATES
        return {
            **row,
            **texts,
            "accuracy": self._accuracy(record),
            "is_live": is_live,
            "problem": look.problem if is_live else None,
        }

    def _accuracy(self, record: Record) -> float | None:
        """The newest held-out accuracy, as far as this computer knows. Reads no unchanged file again."""
        folder = self.live.here(record) or records.home(self.live.book, record.run_id)
        path = Path(folder.metrics)
        try:
            told = path.stat()
        except OSError:
            return None
        mark = (told.st_mtime_ns, told.st_size)
        known = self._accuracies.get(record.run_id)
        if known is None or known[0] != mark:
            known = (mark, documents.newest(border.read_events(path), "trained", "accuracy"))
            self._accuracies[record.run_id] = known
        return known[1]

    def _report(self, record: Record) -> Path | None:
        """The report's copy on this computer or, of a run that was trained here, its original."""
        own = Path(record.run_dir)
        folders = [self.live.book / record.run_id, *([own] if own.is_absolute() and own.name == record.run_id else [])]
        paths = [Path(RunFolder(folder).report) for folder in folders]
        return next((path for path in paths if os.path.isfile(path)), None)

    def _ending(self, run_id: str) -> Document | None:
        found = self._endings.get(run_id)
        if found is None:
            return None
        return {"messages": list(found.screen.messages), "problem": found.problem, "is_over": found.is_over}


def _misnamed(name: str, record: Record) -> str | None:
    """Why a folder with a valid record is not shown as its run."""
    try:
        Name(name, "its folder")
    except BadAnswer as error:
        return error.message
    return None if record.run_id == name else "its run.json is of another run: the folder was copied or renamed"


def _is_whole(plan: Mapping[str, Any]) -> bool:
    """Whether the phases of a plan can be compared. Another version or a person may have written it."""
    phases = plan.get("phases")
    if not isinstance(phases, list) or not isinstance(plan.get("usd_per_hour"), int | float | None):
        return False
    numbers = ("seconds", "usd")
    return all(
        isinstance(each, dict)
        and isinstance(each.get("name"), str)
        and all(key in each and isinstance(each[key], int | float | None) for key in numbers)
        for each in phases
    )


def _words(error: Exception) -> str:
    return error.message if isinstance(error, DeployError) else f"{type(error).__name__}: {error}"
