"""What holds for all tests: their order, and that in CI nothing is skipped that could be installed."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import hypothesis
import pytest

from tests.support.faults import Fault

# A test machine may be busy, so no example has a deadline; CI tries the same examples every time.
hypothesis.settings.register_profile("patient", deadline=None, derandomize=os.environ.get("CI") == "true")
hypothesis.settings.load_profile("patient")

# Advice is written with the words that started these tests, were they known: other words on every machine.
os.environ.pop("SNIPERFACE_INVOKE", None)
# Hundreds of commands run here: each would compile what the one before it has compiled.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# What a skip in CI may wait for; everything else can be had there, and .ci/run must install it.
NOT_IN_CI = (
    "needs the right to mount", "needs a GPU", "needs an engine without GPUs", "needs macOS", "needs Windows",
)  # fmt: skip
# Docker is among the rest, unless .ci/run says by this variable why there can be no engine: it has tried to start one.
NO_ENGINE = "SNIPERFACE_NO_ENGINE"


PASSED = pytest.StashKey[bool]()


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests last; but of two processes none should end alone with the longest file, so that one comes first.

    A test that takes the fixture `fault` injects one, and can be chosen with `-m fault`.
    """
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if "fault" in getattr(item, "fixturenames", ()) and "fault" not in parameters:
            item.add_marker("fault")
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: not item.nodeid.startswith("tests/e2e"))
    else:
        items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(scope="session")
def our_image() -> str:
    """Name and tag of our image, built by our Dockerfile; what is built is kept for the next time."""
    from tests.support import images

    try:
        return images.our_image()
    except images.NoDocker as reason:
        pytest.skip(str(reason))


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Iterator[Fault]:
    """What is shown of every fault; see tests/support/faults.py."""
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
