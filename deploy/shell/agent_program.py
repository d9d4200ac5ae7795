"""The agent as a program for a bare Python: the command, the text it reads, and what a failed start means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploy.pod.agent import agent, frames, ram, rendezvous, snapshots, verbs
from deploy.pod.base import folder, processes

NOT_FOUND, TOO_OLD, REPLACED = 127, 86, 85  # exit codes: of every shell, of `program`, and of its first line
# The same command works in every shell: the program itself comes over standard input. -I and -S: no module in the home
# folder or in an environment there is loaded or searched for. Names are UTF-8, whatever the locale there.
BOOTSTRAP = "python3 -X utf8 -IS -c 'import sys;b=sys.stdin.buffer;b.readline();exec(b.read(int(b.readline())))'"
# Old systems keep an old `python3` for themselves and have a newer one beside it. It gets the text by a pipe, from a
# process of its own, as a pipe does not hold all of it. The syntax is that of Python 3.6. A newer one that does not run
# is a shim of pyenv for a version that is not chosen.
FOR_OLD = """
import sys
text = {text!r}
if sys.version_info < (3, 9):
    import os, shutil, subprocess
    def runs(path):
        null = subprocess.DEVNULL
        try:
            return not subprocess.call([path, "-IS", "-c", ""], stdin=null, stdout=null, stderr=null)
        except OSError:
            return False
    named = [shutil.which("python3.%d" % minor) for minor in range(15, 8, -1)]
    newer = next((path for path in named if path and runs(path)), None)
    if newer is None:
        sys.stderr.write(sys.version.split()[0])
        sys.exit({too_old})
    reading, writing = os.pipe()
    if not os.fork():
        os.close(reading)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(text.encode("utf-8"))
        os._exit(0)
    os.close(writing)
    os.set_inheritable(reading, True)
    os.environ[{python3!r}] = newer
    load = "import os;exec(os.fdopen(%d,'rb').read())" % reading
    os.execv(newer, [newer, "-X", "utf8", "-IS", "-c", load])
exec(text)
"""
LOGIN_SCRIPT = "a login script there, such as ~/.bashrc,"


def program() -> bytes:
    """Return the agent and all its modules as source text for a bare Python, after two lines.

    The first ends a shell that a login script has started in Python's place. The second is the length of the text.
    """
    parts = {"deploy": "", "deploy.pod": "", "deploy.pod.base": "", "deploy.pod.agent": ""}
    for module in (frames, folder, processes, verbs, ram, snapshots, rendezvous, agent):
        parts[module.__name__] = Path(str(module.__file__)).read_text(encoding="utf-8")
    text = f"""
import sys, types
for name, source in {parts!r}.items():
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = []
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
    exec(compile(source, name, "exec"), module.__dict__)
sys.modules["deploy.pod.agent.agent"].main()
"""
    source = FOR_OLD.format(text=text, too_old=TOO_OLD, python3=verbs.PYTHON3).encode("utf-8")
    return b"exit %d\n%d\n" % (REPLACED, len(source)) + source


def why_not(exit_code: int, said: Sequence[str]) -> str:
    """Return why the agent did not start, by the exit code. `said`: the last lines of the output."""
    if exit_code == NOT_FOUND:
        return "the machine is reachable, but has no `python3`: install Python 3.9 or newer there"
    if exit_code == TOO_OLD:
        return (
            f"the machine is reachable, but its `python3` is {said[-1] if said else 'old'}: install 3.9 or newer "
            "there, such as python3.11 beside it"
        )
    if exit_code == REPLACED:
        return (
            f"the machine is reachable, but {LOGIN_SCRIPT} starts another shell in place of each command: start it "
            "in terminals only, as in [ -t 0 ] && exec zsh"
        )
    if exit_code == 0:
        return (
            f"the machine is reachable, but {LOGIN_SCRIPT} or a ForceCommand of its sshd ends the session before "
            "`python3` runs: let commands run there"
        )
    return f"the machine is reachable, but `python3` does not run there: it ended with exit code {exit_code}"
