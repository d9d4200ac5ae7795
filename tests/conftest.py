"""Rules for all tests: their order, shared fixtures, and no skips in CI for something that could be installed."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import hypothesis
import pytest

from tests.support.faults import Fault

# A test machine may be busy, so examples have no deadline. CI runs the same examples every time.
hypothesis.settings.register_profile("patient", deadline=None, derandomize=os.environ.get("CI") == "true")
hypothesis.settings.load_profile("patient")

# Printed advice repeats the command in this variable, which differs between machines.
os.environ.pop("SNIPERFACE_INVOKE", None)
# Users do not set it: their output waits in a buffer, and a fault of its last flush was not seen with it.
os.environ.pop("PYTHONUNBUFFERED", None)
# The tests run hundreds of commands: without bytecode files each would compile everything again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Before a test module imports torch. Several processes test at once: with a thread per core in each, the threads of one
# wait in a loop for those that have no core. A training with 2 threads took ten times the processor time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts background processes with SIGINT ignored, nohup with SIGHUP, and so would be all that the tests start.
for _name in ("SIGINT", "SIGHUP", "SIGTERM"):
    _signal = getattr(signal, _name, None)  # Windows has no SIGHUP
    if _signal is not None and signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, signal.default_int_handler if _name == "SIGINT" else signal.SIG_DFL)

# Reasons for a skip that CI accepts; .ci/run must install everything else.
NOT_IN_CI = (
    "needs the right to mount", "needs a GPU", "needs an engine without GPUs", "needs macOS", "needs Windows",
)  # fmt: skip
# .ci/run must start Docker too. If that is impossible, it sets this variable to the reason, and CI accepts the skip.
NO_ENGINE = "SNIPERFACE_NO_ENGINE"


LEAST_FREE_BYTES = 6 << 30  # of memory for files

# These take minutes each, in one process. If one started late, the other processes would wait for its end. Those of the
# last line mostly wait themselves, while the first ones compute.
LONGEST = (
    "tests/e2e/test_first_run", "tests/e2e/test_nodes", "tests/e2e", "tests/app/shadow/test_two_ranks",
    "tests/app/shadow/test_experiments", "tests/app/test_train", "tests/app/mining/test_pseudo_ids",
    "tests/deploy/pod/test_image_machine", "tests/deploy/providers/test_image_builds",
    "tests/deploy/commands/test_remote", "tests/test_bootstrap", "tests/deploy/commands/test_story",
    "tests/deploy/commands/test_next", "tests/deploy/commands/test_hostile_machine", "tests/deploy/pod/test_guard.",
    "tests/deploy/steps/test_restore", "tests/deploy/pod/test_start", "tests/deploy/workspace/test_compression",
)  # fmt: skip
# The same where only slow tests run. The list ends where a file takes less than half a minute.
LONGEST_SLOW = (
    "tests/e2e/test_first_run", "tests/e2e/test_nodes", "tests/e2e/test_pods", "tests/e2e/test_faults",
    "tests/e2e/test_stock_image", "tests/deploy/commands/test_hostile_machine", "tests/e2e/test_machines",
    "tests/app/shadow/test_two_ranks", "tests/deploy/commands/test_next", "tests/deploy/commands/test_laptop_dies",
    "tests/deploy/steps/test_restore", "tests/deploy/pod/test_guard_exhausted", "tests/deploy/providers/test_runpod",
    "tests/app/shadow/test_experiments", "tests/deploy/pod/test_image_machine", "tests/deploy/commands/test_secrets",
    "tests/test_bootstrap", "tests/deploy/billing/test_reaper", "tests/app/shadow/test_deepest",
    "tests/app/runtime/test_stop.", "tests/deploy/commands/test_runpod_story", "tests/benchmarks/test_fuzz",
    "tests/deploy/commands/test_remote", "tests/deploy/pod/test_guard",
    "tests/app/runtime/test_shards", "tests/e2e/test_lambda_cloud", "tests/deploy/shell/test_transfer_ssh",
    "tests/benchmarks/test_gpu", "tests/deploy/pod/test_start",
    "tests/app/models/test_batch_norm", "tests/deploy/providers/test_image_builds",
    "tests/deploy/commands/test_requests", "tests/app/runtime",
)  # fmt: skip
PASSED = pytest.StashKey[bool]()


def _write_into_memory() -> None:
    """Let the tests write their files into memory, where it has room.

    They delete thousands of files a minute, and ext4 then searches long for the place of each new one.
    """
    memory = Path("/dev/shm")
    if "TMPDIR" in os.environ or not memory.is_dir() or shutil.disk_usage(memory).free < LEAST_FREE_BYTES:
        return
    folder = memory / f"sniperface-tests-{os.getuid()}"
    folder.mkdir(mode=0o711, exist_ok=True)  # other users go through, to what a test opens for them
    if folder.stat().st_uid == os.getuid() and not folder.is_symlink():
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


_write_into_memory()


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Trace no garbage while tests are collected: nine in ten of a million objects stay, and one trace takes 0.8 s.

    Later, leave all of them out, and trace less often.
    """
    gc.disable()
    try:
        if runs_all(session.config) and not runs_slow(session.config):
            _import_own_share()
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)
        gc.enable()


def _import_own_share() -> None:
    """Import every n-th test module, if n processes test. Each finds what pytest compiled for the others.

    On a new clone all would compile all modules otherwise, at the same time. The slow tests come after the others.
    """
    number, count = (os.environ.get(f"PYTEST_XDIST_WORKER{which}", "") for which in ("", "_COUNT"))
    root = Path(__file__).parents[1]
    for file in sorted(root.glob("tests/**/test_*.py"))[int(number[2:] or 0) :: int(count or 1)] if count else ():
        with contextlib.suppress(Exception, pytest.skip.Exception):  # the collection tells
            importlib.import_module(".".join(file.relative_to(root).with_suffix("").parts))


def runs_all(config: pytest.Config) -> bool:
    """Whether no file or folder was named."""
    return bool(config.args == config.getini("testpaths"))


def runs_slow(config: pytest.Config) -> bool:
    """Whether only slow tests run."""
    return bool(config.option.markexpr == "slow")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip files without a slow test where only slow tests run: each process would import all files."""
    if not runs_slow(config) or not collection_path.name.startswith("test_"):
        return None
    return None if names_slow(collection_path) else True


def names_slow(file: Path) -> bool:
    """Whether a file of tests has the mark in its text, as each file with a slow test has to."""
    return "mark.slow" in file.read_text(encoding="utf-8")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run slow tests last; with several processes run the longest files first to balance them.

    Mark tests that inject a fault, that is, take the fixture `fault`: `-m fault` selects them.
    """
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if "fault" in getattr(item, "fixturenames", ()) and "fault" not in parameters:
            item.add_marker("fault")
    for file in {item.path for item in items if item.get_closest_marker("slow")}:
        if not names_slow(file):
            raise pytest.UsageError(f"`-m slow` would not find the slow tests of {file}: name mark.slow in this file")
    if "PYTEST_XDIST_WORKER" in os.environ:
        longest = LONGEST_SLOW if runs_slow(config) else LONGEST
        mixed = _mixed([*dict.fromkeys(item.path for item in items)])
        items.sort(key=lambda item: (_place(item.nodeid, longest), mixed[item.path]))
    else:
        items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


def _place(name: str, longest: Sequence[str]) -> int:
    """Where a test comes among the longest ones; all others come after them."""
    return next((place for place, start in enumerate(longest) if name.startswith(start)), len(longest))


def _mixed(files: Sequence[Path]) -> dict[Path, float]:
    """Where each file comes if those that compute, of tests/app, are spread evenly among those that mostly wait."""
    app = Path(__file__).parent / "app"
    groups = [[file for file in files if file.is_relative_to(app) is inside] for inside in (True, False)]
    return {file: (at + 0.5) / len(group) for group in groups for at, file in enumerate(group)}


@pytest.hookimpl(optionalhook=True)  # pytest-xdist may be missing
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Start five processes on two cores or more, or six for slow tests: both wait much of their time."""
    return 3 * min(os.cpu_count() or 1, 2) - (not runs_slow(config))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Start the servers of forks for all processes, where all tests run: each would start its own."""
    if runs_all(config) and sys.platform == "linux":
        from tests.support import forks

        forks.share()


@pytest.fixture(scope="session")
def our_image() -> str:
    """Name and tag of our image, built from our Dockerfile and kept for the next test run."""
    from tests.support import images

    try:
        return images.our_image()
    except images.NoDocker as reason:
        pytest.skip(str(reason))


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Iterator[Fault]:
    """Check and record what every fault must show; see tests/support/faults.py."""
    made = Fault(request.node.nodeid)
    yield made
    passed = request.node.stash.get(PASSED, False)
    made.record(survived=passed and made.is_shown)
    if passed:
        made.check()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[PASSED] = report.passed
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("CI") != "true" or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    allowed = (*NOT_IN_CI, *(["needs Docker"] if os.environ.get(NO_ENGINE) else []))
    if not reason.startswith(allowed):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where .ci/run should have installed it: {reason}"
