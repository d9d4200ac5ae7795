"""A job's secrets are masked in its log, however its output is split: real supervisors, real jobs, the sieve alone."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import StepFailed
from deploy.pod.base import processes
from deploy.pod.base.folder import write_json
from deploy.pod.base.redact import MASK, pieces
from deploy.pod.job.redacting_log import Sieve
from tests.deploy.conftest import wait_until
from tests.deploy.support.supervised import TELL, Supervised
from tests.support.load import under_load

Make = Callable[..., Supervised]
SECRET = "planted-grüße-secret-4410"
TELLS_ALL = TELL + (
    'secret = os.environ["PLANTED"]\n'
    'print("whole", secret, flush=True)\n'
    'for part in ("split ", secret[:9], secret[9:], "\\n"):\n'
    "    sys.stdout.write(part); sys.stdout.flush(); time.sleep(0.05)\n"
    'subprocess.run([sys.executable, "-c", "import os; print(os.environ[\'PLANTED\'])"])\n'
)
LETTERS = st.text("abc", min_size=6, max_size=9)


@given(st.lists(LETTERS, min_size=1, max_size=3), st.lists(st.text("abcx", max_size=12), max_size=8))
def test_where_the_stream_is_cut_makes_no_difference(secrets: Sequence[str], parts: Sequence[str]) -> None:
    """The result is the same for secrets that are prefixes of each other, or that repeat their own beginning."""
    sieve = Sieve(secrets)
    came = b"".join(sieve(part.encode()) for part in parts) + sieve.rest()
    whole = re.sub("|".join(map(re.escape, pieces(secrets))), MASK, "".join(parts))
    assert came.decode() == whole
    assert not any(secret in whole for secret in secrets)


def test_nothing_waits_that_cannot_be_a_secret() -> None:
    sieve = Sieve(["abcdef"])
    assert sieve(b"a line\n") == b"a line\n"
    assert sieve(b"step 1 a") == b"step 1 "
    assert sieve(b"nd more\n") == b"and more\n"


def given_secret(run: Supervised) -> Supervised:
    run.path.mkdir(parents=True, exist_ok=True)
    write_json(run.path / "secrets.env", {"PLANTED": SECRET})
    return run


def test_a_job_that_prints_its_secret(make: Make) -> None:
    """The secret is masked in log, status and the supervisor's output.

    The job prints it whole and in two halves; so do a child process and the job's traceback.
    """
    run = given_secret(make("one")).start(TELLS_ALL + 'raise RuntimeError(f"refused: {secret}")')
    _, status = run.end()
    assert status["state"] == "failed"
    assert run.log.decode().splitlines()[:3] == [f"whole {MASK}", f"split {MASK}", MASK]
    assert status["evidence"][-1] == f"RuntimeError: refused: {MASK}"
    assert run.output == run.log
    for file in run.root.path.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs kill -9 and /proc: run on Linux")
def test_the_last_words_outlive_the_supervisor(make: Make) -> None:
    """After kill -9 of the supervisor, the job's last output is in the log, masked; then all processes end."""
    script = TELL + (
        'print("begun", flush=True); sys.stdin.read(); print("bye", os.environ["PLANTED"], flush=True)\n'
        'print("and the end", flush=True)'
    )
    run = given_secret(make("one")).start(script).begun()
    assert run.process is not None
    started = processes.descendants(run.process.pid)
    assert len(started) == 2
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.communicate()
    wait_until(lambda: not any(processes.is_alive(pid) for pid in started))
    assert run.log.decode() == f"begun\nbye {MASK}\nand the end\n"


def test_an_environment_without_secrets_needs_no_sieve(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if re.search("KEY|TOKEN|SECRET|PASS|CREDENTIAL", name, re.IGNORECASE):
            monkeypatch.delenv(name)
    run = make("one").start(TELL + 'print("begun", flush=True); sys.stdin.read(); tell(event="end", reason="stopped")')
    run.begun()
    assert run.process is not None
    if sys.platform.startswith("linux"):
        assert len(processes.descendants(run.process.pid)) == 1
    run.stop()
    assert run.end()[1]["state"] == "stopped"


def test_a_full_disk_takes_words_and_not_the_job(tmp_path: Path) -> None:
    """Output that /dev/full rejects is dropped."""
    from deploy.pod.job import redacting_log

    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full: run on Linux")
    process = redacting_log.before(Path("/dev/full"), [SECRET])
    assert process is not None
    assert process.stdin is not None
    process.stdin.write(b"x" * (1 << 20))
    process.stdin.close()
    assert process.wait(under_load(30)) == 0
    assert not list(tmp_path.iterdir())


def test_errors_of_the_laptop_hide_what_its_environment_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Message and evidence are masked. The path of a key and our own settings are not secrets."""
    monkeypatch.setenv("SOME_REGISTRY_PASSWORD", SECRET)
    monkeypatch.setenv("SSH_KEY", str(tmp_path))
    monkeypatch.setenv("SNIPERFACE_KEY", "/no/such/key")
    error = StepFailed(f"denied: {SECRET}", evidence=[f"login me:{SECRET}@host", f"{tmp_path} /no/such/key"])
    assert (str(error), error.message) == (f"denied: {MASK}", f"denied: {MASK}")
    assert error.evidence == (f"login me:{MASK}@host", f"{tmp_path} /no/such/key")
    assert SECRET not in repr(vars(error)) + repr(error)
