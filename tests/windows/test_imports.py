"""The laptop's half on a platform that is patched to look like Windows: imports, and commands that start no program.

`os.name`, the paths, the way to start programs and the packages of others stay those of this system. The lines of
steps.md run on a real Windows, too: test_steps.py.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.deploy.conftest import SOURCE, Project
from tests.support.forks import start_command
from tests.support.load import under_load

# Runs before the command: packages of others first, because they look at the platform, too.
PATCH = """
import asyncio, importlib, os, pkgutil, runpy, signal, subprocess, sys, types
try:
    import starlette.applications, uvicorn  # of the extra `ui`
except ImportError:
    pass
import cryptography, docker, fabric, invoke, paramiko, requests, rich.console, rich.progress, rich.table, yaml
POSIX = ["fcntl", "pty", "termios", "tty", "resource", "pwd", "grp", "syslog", "posix"]
FUNCTIONS = ["fork", "forkpty", "setsid", "getsid", "killpg", "getpgid", "getpgrp", "setpgid", "getuid", "geteuid",
             "getgid", "getegid", "getgroups", "chown", "fchown", "lchown", "mkfifo", "mknod", "nice", "getpriority",
             "setpriority", "sched_getaffinity", "sched_setaffinity", "wait3", "wait4", "openpty", "ttyname",
             "tcgetpgrp", "sysconf", "O_NOFOLLOW", "O_DIRECTORY", "O_NONBLOCK", "WNOHANG", "posix_fallocate"]
SIGNALS = ["SIGKILL", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGSTOP", "SIGCONT", "SIGTSTP", "SIGWINCH",
           "pthread_sigmask", "alarm", "setitimer", "pause"]

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in POSIX:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def become_windows():
    for name in FUNCTIONS:
        vars(os).pop(name, None)
    for name in SIGNALS:
        vars(signal).pop(name, None)
    signal.SIGBREAK = signal.SIGTERM
    subprocess.CREATE_NO_WINDOW, subprocess.CREATE_NEW_PROCESS_GROUP, subprocess.CREATE_BREAKAWAY_FROM_JOB = 1, 2, 4
    msvcrt = sys.modules["msvcrt"] = types.ModuleType("msvcrt")  # every Windows has it
    msvcrt.LK_NBLCK, msvcrt.LK_UNLCK, msvcrt.LK_LOCK = 2, 0, 1
    msvcrt.locking = lambda *_: None
    for name in POSIX:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Missing())
    sys.platform = "win32"
"""
ALL = """
import json, deploy
become_windows()
wrong = {}
for each in pkgutil.walk_packages(deploy.__path__, "deploy."):
    if each.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(each.name)
    except BaseException as error:
        wrong[each.name] = repr(error)
import tasks
print(json.dumps(wrong))
"""
COMMAND = """
become_windows()
sys.argv[0] = "deploy"
runpy.run_module("deploy", run_name="__main__", alter_sys=True)
"""
# Parts of our image. They assert that this is Linux.
OF_A_MACHINE = {"deploy.pod.image.init", "deploy.pod.image.login", "deploy.pod.image.selftest"}


def test_no_module_of_the_laptop_needs_posix() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PATCH + ALL], cwd=SOURCE, capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    wrong = json.loads(done.stdout.splitlines()[-1])
    assert set(wrong) == OF_A_MACHINE, wrong


@pytest.mark.parametrize(
    ("words", "code", "seen"),
    [
        ("--list", 0, "doctor"),
        ("train --dry-run --gpus A40", 2, "rents no GPUs"),
        ("train --dry-run --env A", 2, "write --env KEY=VALUE"),
        ("runs", 0, "none yet"),
        ("ps", 0, "none yet"),
        ("cost", 0, "no run of the last 30 days"),
        ("status", 2, "there is no run on target 'local' yet"),
        ("target list", 0, "conf\\deploy\\docker.yaml|conf/deploy/docker.yaml"),
        ("offers --on local", 2, "rents no machines"),
    ],
)
def test_a_command_of_the_laptop_needs_no_posix(project: Project, words: str, code: int, seen: str) -> None:
    env = {**project.environment, "RUNPOD_API_KEY": "", "HOME": str(project.path)}
    process = start_command(["-c", PATCH + COMMAND, *words.split()], project.path, env)
    out, err = process.communicate(timeout=under_load(60))
    assert "Traceback" not in err, err
    assert process.returncode == code, err
    assert re.search(seen, out + err)
