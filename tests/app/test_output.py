"""What a command prints: work goes on where nobody reads it any more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
WORK = "import sys; from app.output import say; say('one'); say('two'); print('three'); print('done', file=sys.stderr)"
# A pipe without a reader as Windows tells it.
WINDOWS = """
import io, os, sys
class Pipe(io.RawIOBase):
    writable = lambda self: True
    fileno = lambda self: 1
    def write(self, data):
        try:
            return os.write(1, data)
        except BrokenPipeError:
            raise OSError(22, "Invalid argument") from None
sys.platform, sys.stdout = "win32", io.TextIOWrapper(io.BufferedWriter(Pipe()))
"""


@pytest.mark.parametrize("system", ["", WINDOWS])
def test_work_goes_on_where_the_reader_is_gone(system: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", system + WORK],
            cwd=PROJECT,
            env=environment,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "done\n")


def test_a_name_that_the_output_cannot_hold_is_escaped() -> None:
    """Redirected output of Windows has the encoding of the country. A folder may have a name of another one."""
    code = "from app.output import say; say('\\u05d0 \\xfc \\udcff')"
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, check=False)
    assert done.stdout.split() == [b"\\u05d0", b"\xfc", b"\\udcff"], done.stderr
