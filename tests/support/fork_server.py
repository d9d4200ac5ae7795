"""Server that has packages loaded and forks for each Python command; tests/support/forks.py starts and asks it.

A command has the project's modules of the folder it runs in, and its own arguments, environment, streams and exit code.
What loading the modules makes each time is kept, see `_prepare`. The launcher's modules are kept as they are, for
folders with the same files, see `Loaded`.
"""

from __future__ import annotations

import _imp
import atexit
import contextlib
import dataclasses
import functools
import gc
import io
import json
import marshal
import os
import random
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import Mapping, Sequence
from importlib import _bootstrap_external
from pathlib import Path
from typing import Any, NoReturn

TORCHRUN, INVOKE = ["-m", "torch.distributed.run"], ["-m", "invoke"]


def serve(address: str, modules: Sequence[str], packages: Sequence[str]) -> None:
    """Serve until the client ends. Forks a process per request and tells its end, without waiting for it.

    `modules` are those of the project whose code is kept. `packages` are loaded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as pytest does where it loads a package
        for package in packages:
            __import__(package)
    _prepare(modules)
    loaded = Loaded([name for name in modules if name.startswith("deploy.")])
    if "numba" in sys.modules:
        sys.modules["numba"].njit("int64(int64)")(lambda x: x)  # the first function loads what all need
    tasks = Path("/proc/self/task")
    assert not tasks.exists() or len(list(tasks.iterdir())) == 1, "a package started a thread, which no fork would have"
    gc.collect()
    gc.freeze()  # else each command spends a third of its time on freeing these packages when it ends
    # A byte arrives here when a command ends.
    ended, wakeup = os.pipe()
    os.set_blocking(ended, False)
    os.set_blocking(wakeup, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    running: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen(16)
        print("ready", flush=True)
        while True:
            readable, _, _ = select.select([listening, sys.stdin, ended], [], [])
            if ended in readable:
                os.read(ended, 4096)
                _tell_ends(running)
            if listening in readable:
                line, _ = listening.accept()
                try:
                    order, fds = _received(line)
                except (OSError, ValueError):  # the client died meanwhile
                    line.close()
                    continue
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for each in (listening, line, *running.values()):
                        each.close()
                    os.close(ended)
                    os.close(wakeup)
                    _run(order, fds, loaded)
                for fd in fds:
                    os.close(fd)
                running[pid] = line
                with contextlib.suppress(OSError):  # the client may be gone
                    line.sendall(b"%d\n" % pid)
            elif sys.stdin in readable:
                return  # the client closed its end, or died


def _tell_ends(running: dict[int, socket.socket]) -> None:
    """Send the exit codes of the commands that ended."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with contextlib.suppress(OSError), running.pop(pid) as line:  # the client may be gone
            line.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _received(line: socket.socket) -> tuple[Any, list[int]]:
    """Return a request, and the command's streams."""
    head, fds, _, _ = socket.recv_fds(line, 4, 3)
    with line.makefile("rb") as reader:
        return json.loads(reader.read(int.from_bytes(head, "big"))), fds


def _run(order: Any, fds: Sequence[int], loaded: Loaded) -> NoReturn:
    for stream, fd in enumerate(fds):
        os.dup2(fd, stream)
        os.close(fd)
    for stream, name in ((1, "stdout"), (2, "stderr")):
        _open_stream(stream, name, unbuffered=getattr(sys, name).write_through)
    os.chdir(order["cwd"])
    if order["argv"][:2] == TORCHRUN:
        fork_ranks(order["argv"])
    if order["argv"][:2] == INVOKE:
        loaded.use(os.getcwd())
    run_python(order["argv"], order["env"])


def _open_stream(stream: int, name: str, *, unbuffered: bool) -> None:
    """Open sys.stdout or sys.stderr anew: the server's own knows whether its file can seek."""
    raw, old = io.FileIO(stream, "w", closefd=False), getattr(sys, name)
    buffer: Any = raw if unbuffered else io.BufferedWriter(raw)
    new = io.TextIOWrapper(buffer, old.encoding, old.errors, None, old.line_buffering, write_through=unbuffered)
    setattr(sys, name, new)


class Loaded:
    """Modules of the project that this server has loaded, for commands in a folder that has the same files.

    They do no work when they are loaded, so a command cannot tell, apart from the paths that are moved here. Python
    compares time and size of a file too, before it uses bytecode.
    """

    def __init__(self, names: Sequence[str]) -> None:
        root = os.getcwd()
        before = {*sys.modules}
        for name in names:
            __import__(name)
        made = [name for name in sys.modules if name not in before]
        own = [name for name in made if str(getattr(sys.modules[name], "__file__", "")).startswith(f"{root}/")]
        self.modules = {name: sys.modules.pop(name) for name in own}
        self.files = {name: str(module.__file__)[len(root) + 1 :] for name, module in self.modules.items()}
        self.stamps = {file: _stamp(f"{root}/{file}") for file in self.files.values()}
        self.paths = [
            (module, key, value.relative_to(root))
            for module in self.modules.values()
            for key, value in vars(module).items()
            if isinstance(value, Path) and value.is_relative_to(root)
        ]

    def use(self, root: str) -> None:
        """Give the modules to a command in this folder, unless a file differs: then the command loads its own."""
        try:
            if any(_stamp(f"{root}/{file}") != stamp for file, stamp in self.stamps.items()):
                return
        except OSError:
            return
        for name, module in self.modules.items():
            file, spec = f"{root}/{self.files[name]}", module.__spec__
            module.__file__ = spec.origin = spec.loader.path = file  # type: ignore[union-attr]
            module.__cached__ = spec.cached = _bootstrap_external.cache_from_source(file)  # type: ignore[union-attr,attr-defined]
            if spec.submodule_search_locations is not None:  # type: ignore[union-attr]
                module.__path__ = spec.submodule_search_locations = [str(Path(file).parent)]  # type: ignore[union-attr]
        for module, key, inside in self.paths:
            setattr(module, key, Path(root, inside))
        sys.modules.update(self.modules)


def _stamp(file: str) -> tuple[int, int]:
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns


def _prepare(modules: Sequence[str]) -> None:
    """Keep what loading these modules makes: code, methods of dataclasses, regular expressions. Forks make none again.

    Another process loads the modules, and says what it made. A fork still reads each file, and uses the code only if
    the bytes are the same.
    """
    read, write = os.pipe()
    if os.fork() == 0:
        _load_and_tell(modules, write)
    os.close(write)
    with open(read, "rb") as told:
        methods, patterns, files = marshal.load(told)  # noqa: S302
    os.wait()

    compiled = functools.lru_cache(maxsize=5000)(lambda text: compile(text, "<string>", "exec"))
    for text in methods:
        compiled(text)
    # `dataclass` looks up `exec` in its own module first.
    dataclasses.exec = lambda text, *names: exec(compiled(text), *names)  # type: ignore[attr-defined]  # noqa: S102

    for pattern, flags in patterns:
        re.compile(pattern, flags)

    code = {content: marshal.loads(content) for content in (Path(file).read_bytes()[16:] for file in files)}  # noqa: S302
    load = _bootstrap_external._compile_bytecode  # type: ignore[attr-defined]

    def loaded(content: Any, name: Any = None, bytecode_path: Any = None, source_path: Any = None) -> Any:
        kept = code.get(bytes(content))
        if kept is None or source_path is None:
            return load(content, name, bytecode_path, source_path)
        _imp._fix_co_filename(kept, source_path)  # type: ignore[attr-defined]
        return kept

    _bootstrap_external._compile_bytecode = loaded  # type: ignore[attr-defined]


def _load_and_tell(modules: Sequence[str], write: int) -> NoReturn:
    """Load modules, and tell the texts that `dataclass` compiled, all regular expressions, and the files of code."""
    methods: list[str] = []
    dataclasses.exec = lambda text, *names: methods.append(text) or exec(text, *names)  # type: ignore[attr-defined]  # noqa: S102
    before = {*sys.modules}
    for module in modules:
        __import__(module)
    specs = [sys.modules[name].__spec__ for name in sys.modules if name not in before]
    files = [spec.cached for spec in specs if spec and spec.cached and Path(spec.cached).exists()]
    patterns = [(pattern, int(flags)) for _, pattern, flags in re._cache]  # type: ignore[attr-defined]
    with open(write, "wb") as told:
        marshal.dump((methods, patterns, files), told)
    os._exit(0)


def run_python(argv: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Run as `python *argv` would: `[-u] -m MODULE …`, `[-u] -c CODE …` or `[-u] SCRIPT …`.

    At the end Python would free every loaded package, which takes longer than a short command. Here threads end, exit
    functions run and streams are flushed, as in Python, but memory is left to the system.
    """
    os.environ.clear()
    os.environ.update(environment)
    random.seed()  # else all forks draw the same numbers
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    code = _exit_code(argv)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = 120  # as Python says it
    os._exit(code)


def _exit_code(argv: Sequence[str]) -> int:
    """Run the code, and return what Python would return to the system. Prints an exception that nobody caught."""
    try:
        _run_main(argv)
    except SystemExit as asked:
        if asked.code is None or isinstance(asked.code, int):
            return (asked.code or 0) & 0xFF
        print(asked.code, file=sys.stderr)
        return 1
    except BaseException as error:
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename in (__file__, "<frozen runpy>"):
            frames = frames.tb_next
        sys.excepthook(type(error), error.with_traceback(frames), frames)
        if isinstance(error, KeyboardInterrupt):  # then the signal ends Python
            sys.stderr.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        return 1
    return 0


def _run_main(argv: Sequence[str]) -> None:
    first, *rest = argv
    if first == "-u":
        for stream, name in ((1, "stdout"), (2, "stderr")):
            _open_stream(stream, name, unbuffered=True)
        first, *rest = rest
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if first == "-m":
        sys.path[0] = os.getcwd()
        sys.argv = ["-m", *rest[1:]]
        runpy._run_module_as_main(rest[0])  # type: ignore[attr-defined]  # what `python -m` calls
    elif first == "-c":
        sys.path[0] = ""
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)  # noqa: S102 - the code is a test's
    else:
        sys.path[0] = str(Path(first).resolve().parent)
        sys.argv = [first, *rest]
        main.__dict__["__file__"] = first
        exec(compile(Path(first).read_bytes(), first, "exec"), main.__dict__)  # noqa: S102 - the same


def fork_ranks(argv: Sequence[str]) -> None:
    """Fork the ranks of torchrun before it runs, while it has no threads. Each waits for torchrun to start it.

    They are children of torchrun's process, as usual, in sessions of their own. If torchrun starts more processes than
    it was told at first, the others load everything again.
    """
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
    from torch.distributed.elastic.rendezvous import dynamic_rendezvous

    # Only its log names the method. It searches all loaded modules for it, which takes half a second in all.
    dynamic_rendezvous.get_method_name = lambda depth=2: "rendezvous"  # noqa: ARG005

    given = next((word for word in argv if word.startswith("--nproc-per-node=")), "=1")
    waiting: list[tuple[int, int]] = []
    for _ in range(int(given.split("=")[1])):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            for other in (write, *(end for _, end in waiting)):
                os.close(other)
            with open(read, "rb") as orders:
                told = orders.read()
            if not told:
                os._exit(0)  # torchrun ended before it started this rank
            os.setsid()
            order = json.loads(told)
            run_python(order["argv"], order["env"])
        os.close(read)
        waiting.append((pid, write))

    class ForkedRank(subprocess.Popen):  # type: ignore[type-arg]
        def _execute_child(self, args: Any, executable: Any, *rest: Any) -> None:
            environment = rest[4]
            if not waiting or args[0] != sys.executable:
                super()._execute_child(args, executable, *rest)  # type: ignore[misc]
                return
            self.pid, write = waiting.pop(0)
            self._child_created = True
            with open(write, "wb") as orders:
                orders.write(json.dumps({"argv": args[1:], "env": environment}).encode())

    subprocess_handler.Popen = ForkedRank


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2].split(), sys.argv[3:])
