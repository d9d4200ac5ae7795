"""A forked command ends as a new interpreter does: the same output, exit code and exception."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.forks import PROJECT, forks

ENDS = {
    "nothing": "pass",
    "a number": "import sys; sys.exit(3)",
    "a sentence": "import sys; print('out'); sys.exit('refused')",
    "an exception": "print('out')\n1 / 0",
    "exit functions": "import atexit, threading\natexit.register(print, 'last')\n"
    "threading.Timer(0.1, print, ['first']).start()",
    "no shutdown": "import os; print('lost'); os._exit(4)",
    "a signal": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "Ctrl-C": "import signal; signal.raise_signal(signal.SIGINT)",
    "arguments": "import sys; print(sys.argv, sys.path[0], __name__, sys.stdin.read())",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Linux or macOS: Windows cannot fork")
@pytest.mark.parametrize("code", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("kind", ["-c", "script", "-m"])
def test_a_fork_ends_as_an_interpreter_does(code: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(code)
    argv = {"-c": ["-c", code], "script": [str(tmp_path / "program.py")], "-m": ["-m", "program"]}[kind] + ["word"]
    server, environment = forks(), {**os.environ, "PYTHONUTF8": "1"}
    assert server is not None
    assert server.can_run(environment)
    fork = server.run(argv, tmp_path, environment, 60)
    real = subprocess.run(
        [sys.executable, *argv], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    told = [line for line in real.stderr.splitlines() if "<frozen runpy>" not in line]
    assert (fork.returncode, fork.stdout) == (real.returncode, real.stdout)
    assert fork.stderr.splitlines() == told
    assert not server.can_run({**environment, "PYTHONHASHSEED": "0"})


TELLS = """
import inspect, sys
from pathlib import Path
from deploy import errors, workspace
from deploy.workspace import devices
print(errors.__file__, inspect.getsourcefile(workspace), workspace.__path__, devices.PROBE)
spec = workspace.__spec__
print(spec.origin, spec.cached, spec.submodule_search_locations, spec.loader.path)
print(getattr(errors, "ADDED", None))
sys.exit("deploy.commands.ps" in sys.modules)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Linux or macOS: Windows cannot fork")
def test_a_command_has_the_modules_of_its_folder(tmp_path: Path) -> None:
    """Those that the server has loaded say the same as its own, and are not used if one file differs."""
    shutil.copytree(PROJECT / "deploy", tmp_path / "deploy")
    (tmp_path / "tasks.py").write_text(TELLS)
    server, argv, environment = forks(), ["-m", "invoke", "--list"], {**os.environ, "PYTHONUTF8": "1"}
    assert server is not None
    for is_loaded in (True, False):
        fork = server.run(argv, tmp_path, environment, 60)
        assert (fork.returncode, fork.stderr) == (is_loaded, "")
        real = subprocess.run([sys.executable, *argv], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert fork.stdout.splitlines() == real.stdout.splitlines()
        with (tmp_path / "deploy" / "errors.py").open("a") as file:
            file.write("ADDED = 1\n")
    assert fork.stdout.endswith("\n1\n")
