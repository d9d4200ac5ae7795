"""Run tests in forked processes that have the large packages loaded, with the code of a copy of the project."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.mutation import tracing

OURS = ("tests", "deploy", "app", "tasks", "sniperface", "bootstrap")
QUIET = ("-q", "-x", "-n0", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--tb=line")
END_S = 20.0  # for a test that was interrupted to end what it started


class Chosen:
    """Runs only these tests, in this order, and notes the first that fails."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.tests = tests
        self.failed = ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        known = {item.nodeid: item for item in items}
        items[:] = [known[test] for test in self.tests if test in known]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid


class Covering:
    """Notes which test runs which lines, and how long it takes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    def pytest_collection_finish(self) -> None:
        self._note("")  # what runs at import is of no test

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        (self.folder / "test").write_text(item.nodeid, encoding="utf-8")
        done = yield
        self._note(item.nodeid)
        return done

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if not report.passed:
            self.failed.add(report.nodeid)

    def _note(self, test: str) -> None:
        told = {"test": test, "lines": sorted(tracing.LINES)}
        (self.folder / f"main-{len(self.seconds)}.json").write_text(json.dumps(told), encoding="utf-8")
        tracing.LINES.clear()


def cover(tree: Path, folders: Sequence[str], file: str, out: Path) -> None:
    """Run a file of tests and write which lines of the folders each runs: {"tests": id -> s, "lines": id -> lines}.

    A line is [file, number]. Tests that fail or are skipped are left out; the lines of "" run at import.
    """

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "test").write_text("", encoding="utf-8")
            code = Path(tracing.__file__).parent
            os.environ |= {
                "MUTATION_TRACE": folder, "MUTATION_FOLDERS": ",".join(folders), "MUTATION_MAIN": str(os.getpid()),
                "MUTATION_CODE": str(code), "PYTHONPATH": f"{os.environ['PYTHONPATH']}{os.pathsep}{code / 'start'}",
            }  # fmt: skip
            tracing.start()
            plugin = Covering(Path(folder))
            pytest.main([*(word for word in QUIET if word != "-x"), file], plugins=[plugin])
            lines: dict[str, set[tuple[str, int]]] = {}
            for told in (json.loads(each.read_text(encoding="utf-8")) for each in Path(folder).glob("*.json")):
                lines.setdefault(told["test"], set()).update((name, line) for name, line in told["lines"])
            seconds = {test: each for test, each in plugin.seconds.items() if test not in plugin.failed}
            told = {"tests": seconds, "lines": {test: sorted(lines.get(test, ())) for test in ("", *seconds)}}
            out.write_text(json.dumps(told), encoding="utf-8")

    _forked(tree, work, out.with_suffix(".log"), None)


def failing(tree: Path, tests: Sequence[str], log: Path, limit_s: float) -> str | None:
    """The first of the tests that fails; None if all pass. `timeout` after `limit_s`, `import` if nothing starts."""
    answer = log.with_suffix(".json")
    answer.unlink(missing_ok=True)

    def work() -> None:
        chosen = Chosen(tests)
        code = int(pytest.main([*QUIET, *dict.fromkeys(test.partition("::")[0] for test in tests)], plugins=[chosen]))
        answer.write_text(json.dumps([code, chosen.failed]), encoding="utf-8")

    if not _forked(tree, work, log, limit_s):
        return "timeout"
    if not answer.exists():
        return "import"
    code, failed = json.loads(answer.read_text(encoding="utf-8"))
    return None if code == 0 else failed or "import"


def _forked(tree: Path, work: Any, log: Path, limit_s: float | None) -> bool:
    """Do the work in a forked process. Returns whether it ended in time; else it is interrupted, then killed."""
    pid = os.fork()
    if pid == 0:
        _child(tree, work, log)
    began = time.monotonic()
    for number, more_s in ((None, limit_s), (signal.SIGINT, END_S), (signal.SIGKILL, None)):
        if number is not None:
            os.kill(pid, number) if number == signal.SIGINT else os.killpg(pid, number)
        until = None if more_s is None else time.monotonic() + more_s
        while until is None or time.monotonic() < until:
            if os.waitpid(pid, 0 if until is None else os.WNOHANG)[0]:
                return limit_s is None or time.monotonic() - began <= limit_s
            time.sleep(0.02)
    return False


def _child(tree: Path, work: Any, log: Path) -> NoReturn:
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(tree)
        for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
            del sys.modules[name]
        sys.path[:] = [str(tree), *(path for path in sys.path[1:] if path)]
        os.environ["PYTHONPATH"] = str(tree)
        with log.open("wb") as file, open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        work()
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        sys.stdout.flush()
        os._exit(code)
