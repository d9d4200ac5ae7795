"""Sets up everything this project needs, once, and runs a command in its virtual environment.

    python bootstrap.py invoke train      sets up everything and runs the main job
    python bootstrap.py pytest            sets up everything and runs the tests
    python bootstrap.py invoke --list     lists all other tasks
    python bootstrap.py ruff check .      any other command of the virtual environment

It makes .venv beside this file, installs what the command needs (little for remote runs; training on this
computer adds torch) and runs the command in the project's folder. A second call installs nothing.
Deleting .venv is always safe: the next call makes it again.

Standard library only. Runs on Windows, macOS and Linux with Python 3.10 to 3.14, 64-bit.
"""

import sys
import sysconfig

NEEDS: str = "Sniperface needs Python 3.10 to 3.14"  # Python 2 stops at this line and prints it


def why_not(version: "tuple[int, ...]", platform: str, is_64_bit: bool) -> str:
    """Return why this Python cannot be used, and what to install, in one sentence; empty if it can be used.

    PyTorch and others publish packages for some Pythons only; for another one pip fails after minutes.
    `platform`: from sysconfig.get_platform(). The syntax is valid since 3.6: the user's Python may be old.
    """
    this = "{}, but this is Python {}.{}.{}".format(NEEDS, *version[:3])
    if platform.startswith("win"):
        how = "install Python 3.11 with: winget install --architecture x64 Python.Python.3.11   then: "
        how += "py -3.11 bootstrap.py invoke train"
    else:
        how = "install Python 3.11, from python.org or your system's packages, and call bootstrap.py with it."
    if not (3, 10) <= tuple(version[:2]) <= (3, 14):
        return this + ": " + how
    if platform == "win-arm64":
        return this + " for ARM, which has no PyTorch packages; Windows on ARM can run Python for x64: " + how
    if not is_64_bit:
        return this + ", 32-bit, which has no PyTorch packages: " + how
    return ""


if why_not(sys.version_info[:3], sysconfig.get_platform(), sys.maxsize > 2**32):
    sys.exit(why_not(sys.version_info[:3], sysconfig.get_platform(), sys.maxsize > 2**32))

import codecs
import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
WINDOWS = os.name == "nt"
BIN = VENV / ("Scripts" if WINDOWS else "bin")
PYTHON = BIN / ("python.exe" if WINDOWS else "python")
REQUIREMENTS = HERE / "requirements"
STAMP = VENV / "bootstrap.json"  # records what is installed, or that an installation has begun
LOCK = HERE / ".bootstrap.lock"  # outside .venv, which may be cleared while the lock is held

# Text in pip's output, in lower case, and advice. The first match counts.
PIP_ADVICE = [
    (("no space left", "errno 28", "not enough space"), "the disk is full: make room and try again"),
    (
        ("long path", "filename or extension is too long", "file name too long", "errno 36]"),
        "a path is too long: move this folder to a short one, such as C:\\sniperface, and try again",
    ),
    (
        ("permission denied", "access is denied", "being used by another process", "winerror 32", "winerror 5]"),
        "a file is in use or not writable: close the programs that use .venv, or keep OneDrive and the virus "
        "scanner out of this folder, and try again",
    ),
    (
        ("certificate_verify_failed", "sslerror", "certificate verify failed"),
        "a certificate failed verification: check whether a company proxy intercepts the connection",
    ),
    (
        ("getaddrinfo", "name resolution", "failed to establish a new connection", "connection refused", "timed out",
         "max retries exceeded", "network is unreachable", "proxyerror"),
        "check the network connection",
    ),
    (
        ("do not match the hashes",),
        "a file is not one that this project knows: check the package index, or set SNIPERFACE_TORCH=unverified to "
        "install another build of torch 2.13",
    ),
    (
        ("no matching distribution", "could not find a version", "is not a supported wheel"),
        "pip's package index lacks a package for this Python and system; use Python 3.11, which has them all",
    ),
    (
        ("failed building wheel", "subprocess-exited-with-error"),
        "a package has no wheel for this Python and system; use Python 3.11",
    ),
]  # fmt: skip
HASHED = ["--require-hashes", "--no-deps", "--no-build-isolation", "--use-pep517"]
ASKS_FOR_CUDA = (
    "import importlib.metadata, sys; "
    "sys.exit(not any(each.startswith(('cuda', 'nvidia')) for each in importlib.metadata.requires('torch') or ()))"
)
# Started as `python -m NAME`: the first line of a script in .venv/bin cannot hold every path (quotes). Invoke itself
# would answer --help and --version before it reads our tasks.
MODULES = {
    "inv": "deploy", "invoke": "deploy", "sniperface": "deploy", "mypy": "mypy", "pytest": "pytest", "ruff": "ruff",
}  # fmt: skip
EXTRAS = {"mypy": {"app", "dev"}, "pytest": {"app", "dev", "s3", "wandb"}, "ruff": {"dev"}}  # mypy reads numpy's types
# Invoke tasks that run a command of app/ on the target. On this computer they need the extra 'app'.
APP_TASKS = {"bench", "data", "deploy", "evaluate", "export", "mine", "prepare", "train"}
UI_TASKS = {"ui"}  # serve a page
PACK_TASKS = {"deploy", "train"}  # may upload images packed, and pack them here


def main(command: list[str]) -> int:
    if not command or command[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    extras = extras_for(command)
    try:
        if not is_ready(extras):
            set_up(extras)
    except KeyboardInterrupt:
        say("stopped; run the same command to continue")
        return 130
    return run(command)


def extras_for(command: list[str]) -> set[str]:
    """Return the optional dependencies of a command: 'app' (with torch) only if the app itself runs here."""
    name, arguments = Path(command[0]).stem, command[1:]
    if MODULES.get(name) == "deploy":
        only_asks = {"-h", "--help", "-l", "--list", "-V", "--version"}.intersection(arguments)
        task = next((word for word in arguments if not word.startswith("-")), "")
        if task in UI_TASKS and not only_asks:
            return {"ui"}
        if task not in APP_TASKS or only_asks:
            return set()
        target = value_of(("--on", "-o"), arguments)
        target = "local" if target is None else target
        of_s3 = {"s3"} if uses_s3(target, arguments) else set()
        if is_local(target):
            return {"app"} | of_s3 | ({"wandb"} if tracks_by_wandb(arguments) else set())
        return of_s3 | ({"pack"} if task in PACK_TASKS and packs(target, arguments) else set())
    if name.startswith("python"):
        if not any(word.startswith(("app.", "benchmarks")) for word in arguments):
            return set()
        return {"app", "wandb"} if tracks_by_wandb(arguments) else {"app"}
    return EXTRAS.get(name, set())


def value_of(flags: tuple[str, ...], arguments: list[str]) -> str | None:
    """Return the value of a flag, in each form that invoke reads; None if it is not given."""
    for index, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name in flags:
            return value if equals else "".join(arguments[index + 1 : index + 2])
    return None


def is_local(target: str) -> bool:
    """Return whether the target is this computer, by one line of its file."""
    return (key_of(target, "provider") or target) == "local"


def packs(target: str, arguments: list[str]) -> bool:
    """Return whether images are uploaded packed: by the flag, the environment, or the target's file."""
    told = value_of(("--pack",), arguments) or os.environ.get("SNIPERFACE_PACK") or key_of(target, "pack")
    return told not in (None, "none", "null")


def tracks_by_wandb(arguments: list[str]) -> bool:
    """Return whether W&B records the run. A machine has its package in any case, this computer on request."""
    return any(re.fullmatch(r"(--set=)?track=[\"']?wandb[\"']?", word) for word in arguments)


def uses_s3(target: str, arguments: list[str]) -> bool:
    """Return whether images or copies are in S3: by the flag or the target's file."""
    places = (value_of(("--data",), arguments), key_of(target, "data"), key_of(target, "sync_to"))
    return any(re.match("s3a?(:|$)", place or "") for place in places)


def key_of(target: str, key: str) -> str | None:
    """Return the value of a key in a target's file. No YAML reader is installed yet."""
    for file in files_of(target):
        if not file.is_file():  # con.yaml is the console on Windows 10, and would wait for input
            continue
        try:
            text = decoded(file.read_bytes())
            break
        except OSError:
            continue
    else:
        return None
    found = re.search(rf"^{key}\s*:\s*[\"']?(\w+)", text, re.MULTILINE)
    return found.group(1) if found else None


def files_of(target: str) -> tuple[Path, ...]:
    """Where a target's file may be: in the project or, for a target of the user's own, outside git."""
    told = os.environ.get("APPDATA" if sys.platform == "win32" else "XDG_CONFIG_HOME")
    default = Path.home() / ("AppData/Roaming" if sys.platform == "win32" else ".config")
    shipped, own = HERE / "conf" / "deploy", (Path(told) if told else default) / "sniperface" / "targets"
    return shipped / f"{target}.yaml", shipped / f"{target}.local.yaml", own / f"{target}.yaml"


def decoded(data: bytes) -> str:
    """Decode a text file that PowerShell or Notepad may have written. The command itself reports what is not text."""
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if is_utf16 else "utf-8-sig", errors="replace")


def is_ready(extras: set[str]) -> bool:
    stamp = read_stamp()
    return extras.issubset(stamp.get("extras", ())) and stamp.get("fingerprint") == fingerprint()


def read_stamp() -> dict[str, Any]:
    try:
        stamp = json.loads(STAMP.read_bytes())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(stamp: dict[str, Any]) -> None:
    import time

    new = STAMP.with_suffix(".new")
    new.write_text(json.dumps(stamp), encoding="utf-8")
    for _ in range(100):  # Windows refuses while a virus scanner reads the file
        with contextlib.suppress(PermissionError):
            os.replace(new, STAMP)
            return
        if not WINDOWS:
            break
        time.sleep(0.05)
    os.replace(new, STAMP)


def fingerprint() -> str:
    """Return a hash of the required packages, the folder's path, the base Python, and what is installed."""
    digest = hashlib.sha256(os.fsencode(VENV))
    try:
        for file in (HERE / "constraints.txt", *sorted(REQUIREMENTS.glob("*.txt")), VENV / "pyvenv.cfg"):
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        digest.update(os.fsencode(PYTHON.resolve(strict=True)))
        for folder in site_packages():
            digest.update(str(folder.stat().st_mtime_ns).encode())
    except OSError as error:  # no virtual environment, or an incomplete one
        return f"incomplete: {error.filename}"
    return digest.hexdigest()


def site_packages() -> list[Path]:
    return [VENV / "Lib" / "site-packages"] if WINDOWS else sorted(VENV.glob("lib/python*/site-packages"))


def installed_by_others() -> list[str]:
    """Return the names of packages besides those that a new virtual environment has."""
    names = [path.name.split("-")[0] for folder in site_packages() for path in sorted(folder.glob("*.dist-info"))]
    return [name for name in names if name not in ("pip", "setuptools", "wheel")]


def set_up(extras: set[str]) -> None:
    """Make or repair .venv and install. A second call at the same time waits and finds the work done."""
    with one_at_a_time() as lock:
        if is_ready(extras):
            return
        stamp = read_stamp()
        unfinished = "extras" not in stamp
        moved = stamp.get("folder", str(VENV)) != str(VENV)  # the scripts in .venv/bin name the old folder
        if unfinished or moved or not is_healthy():
            stamp = {}
            make_venv()
        kept = stamp["extras"] if stamp.get("fingerprint") == fingerprint() else []
        write_stamp({})
        if not install(extras, lock):
            write_stamp(
                {"folder": str(VENV), **stamp, "extras": kept}
            )  # what pip has installed stays, and is not installed again
            sys.exit(1)
        write_stamp({"fingerprint": fingerprint(), "folder": str(VENV), "extras": sorted({*kept, *extras})})
        say("ready")


@contextlib.contextmanager
def one_at_a_time() -> Iterator[IO[bytes]]:
    """Hold the lock file. The operating system releases it when this process and its pip have ended."""
    import time

    with open(LOCK, "ab") as lock:
        patient = False
        while not is_locked_now(lock):
            if not patient:
                say("another bootstrap is running in this folder; waiting for it")
            patient = True
            time.sleep(0.1)
        yield lock


def is_locked_now(lock: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            lock.seek(0)
            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_healthy() -> bool:
    """Return whether .venv holds a Python of the right version with pip: a half-made or orphaned one does not."""
    import subprocess

    try:
        check = [str(PYTHON), "-c", "import pip, sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))"]
        return subprocess.run(check, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def refuse_foreign() -> None:
    """Exit with 2 if somebody else made .venv: to clear it would delete what they installed."""
    real = os.path.realpath(VENV)
    if real != str(VENV):  # a link, or a junction of Windows
        say(f".venv is a link to {real}, which may belong to another project: delete the link and try again")
        sys.exit(2)
    others = [] if STAMP.exists() else installed_by_others()
    if others:
        say(f".venv has packages that bootstrap.py did not install, such as {others[0]}: rename the folder .venv, or "
            "delete it if nothing needs it, and try again")  # fmt: skip
        sys.exit(2)


def make_venv() -> None:
    import importlib.util
    import subprocess

    refuse_foreign()
    version = "{}.{}.{}".format(*sys.version_info[:3])
    say(("repairing .venv" if VENV.exists() else "creating .venv") + f" with Python {version}")
    base = getattr(sys, "_base_executable", sys.executable)  # this process may itself run in the .venv to be cleared
    command = [base, "-m", "venv", "--clear", str(VENV)]
    made = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if made.returncode == 0:
        return
    show_end((made.stdout + made.stderr).splitlines())
    if importlib.util.find_spec("ensurepip") is None:
        say("this Python cannot create virtual environments: run apt-get install python3-venv, then try again")
    else:
        say(".venv could not be created: close the programs that use it, delete the folder .venv and try again")
    sys.exit(1)


def install(extras: set[str], lock: IO[bytes]) -> bool:
    """Install what builds packages, then the lists of the command, then torch. pip checks the hash of every file."""
    import time

    what = f"with {' and '.join(sorted(extras))}" if extras else "for the laptop"
    say(f"installing Sniperface {what} (the first time, this takes a while)")
    lists = [f"--requirement=requirements/{name}.txt" for name in ("laptop", *sorted(extras))]
    steps: list[tuple[str, Callable[[], bool]]] = [
        ("the tools that build packages", lambda: pip([*HASHED, "--requirement=requirements/build.txt"], lock)),
        ("packages", lambda: pip([*HASHED, *lists], lock)),
        *([("PyTorch", lambda: install_torch(lock))] if "app" in extras else []),
    ]
    for number, (name, work) in enumerate(steps, 1):
        started = time.monotonic()
        say(f"step {number} of {len(steps)}: {name}")
        if not work():
            return False
        say(f"  done in {time.monotonic() - started:.0f} s")
    return True


def install_torch(lock: IO[bytes]) -> bool:
    """Install torch, and what its build for CUDA needs if it is that build."""
    if os.environ.get("SNIPERFACE_TORCH") == "unverified":
        return pip(["--constraint=constraints.txt", "torch"], lock)
    torch = [*HASHED, "--requirement=requirements/torch.txt"]
    # A build in a folder of PIP_FIND_LINKS first: pip prefers a file whose link has a hash, so the index's CUDA build.
    if not pip(["--no-index", *torch], lock, may_fail=True) and not pip(torch, lock):
        return False
    if not needs_cuda():
        if WINDOWS and has_gpu():
            say("  this build of PyTorch computes on the CPU, and this computer has an NVIDIA GPU: for the build that")
            say("  uses it, follow docs/machines.md, section Windows")
        return True
    if not has_gpu():
        say(
            "  this build of PyTorch needs gigabytes of CUDA libraries, and this computer has no NVIDIA GPU: to get the"
        )
        say("  for the build for CPUs, press Ctrl-C and follow README.md, section Two commands")
    return pip([*HASHED, "--requirement=requirements/cuda.txt"], lock)


def has_gpu() -> bool:
    """Whether an NVIDIA driver is loaded, here or below Windows' subsystem for Linux."""
    if WINDOWS:
        return os.path.exists(os.path.join(os.environ.get("SYSTEMROOT", "C:\\Windows"), "System32", "nvcuda.dll"))
    return any(map(os.path.exists, ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")))


def needs_cuda() -> bool:
    """Whether the installed torch asks for CUDA's libraries: on Linux, except for its builds for CPUs."""
    import subprocess

    return sys.platform == "linux" and subprocess.run([str(PYTHON), "-c", ASKS_FOR_CUDA], check=False).returncode == 0


def pip(arguments: list[str], lock: IO[bytes], *, may_fail: bool = False) -> bool:
    """Install something; return whether that worked. A failure is shown unless it `may_fail`."""
    import subprocess

    command = [str(PYTHON), "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
    command += ["--disable-pip-version-check", *arguments]
    lines = []
    with subprocess.Popen(
        command,
        cwd=HERE,  # so that no argument contains the folder: pip splits some of its settings at spaces
        env={**environment(), "PIP_USER": "0", "PYTHONUTF8": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        # If this process is killed, pip continues, and must then keep the lock.
        pass_fds=() if WINDOWS else (lock.fileno(),),
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            large = re.match(r"\s*Downloading (\S+?)-\d\S* \((\d\d+)(\.\d+)? MB\)", line)
            if large:
                say(f"  downloading {large.group(1)} ({large.group(2)} MB)")
            elif line.startswith("Installing collected packages") and line.count(",") > 1:
                say(f"  unpacking {line.count(',') + 1} packages")
    if process.returncode != 0 and not may_fail:
        show_end(lines)
        say(f"pip failed (exit code {process.returncode}), its last lines are above; {why_pip_failed(lines)}")
    return process.returncode == 0


def why_pip_failed(lines: list[str]) -> str:
    """Return the advice that fits pip's output."""
    text = "\n".join(lines).lower()
    for words, advice in PIP_ADVICE:
        if any(word in text for word in words):
            return advice
    return "check the network connection"


def run(command: list[str]) -> int:
    """Replace this process by the command. Windows cannot do that: there, run it as a child and wait."""
    import shutil

    env = environment()
    name = command[0]
    if name in MODULES:
        command = [str(PYTHON), "-m", MODULES[name], *command[1:]]
    else:
        program = shutil.which(name, path=env["PATH"])
        if program is None:
            say(f"unknown command '{name}': list the commands with {env['SNIPERFACE_INVOKE']} --list")
            return 2
        command = [program, *command[1:]]
    os.chdir(HERE)
    if WINDOWS:
        return run_as_child(command, env)
    os.execve(command[0], command, env)  # noqa: S606 - running what the user typed is the point


def run_as_child(command: list[str], env: dict[str, str]) -> int:
    """Run the command as a child and return its exit code. Ctrl-C reaches the child directly, which handles it."""
    import subprocess

    with subprocess.Popen(command, env=env) as child:
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:
                continue


def environment() -> dict[str, str]:
    """Return this process's environment with .venv activated."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONHOME"}
    path = os.pathsep.join([str(BIN), env.get("PATH", os.defpath)])
    # What to type before the name of a task. `invoke` prints it, so the user never needs to activate anything.
    typed = "sniperface" if "SNIPERFACE_STARTED_IN" in env else f"{launcher()} bootstrap.py invoke"
    return {**env, "VIRTUAL_ENV": str(VENV), "PATH": path, "SNIPERFACE_INVOKE": typed}


def launcher() -> str:
    """Return how to call this Python in the user's terminal: a name that leads to it, else its path."""
    import shlex
    import shutil

    if os.environ.get("UV") and os.environ.get("UV_RUN_RECURSION_DEPTH"):  # set by `uv run`
        return "uv run"
    executable = Path(sys.executable)
    name = re.sub("[.]exe$", "", executable.name)
    found = shutil.which(name)
    with contextlib.suppress(OSError):
        if found and os.path.samefile(found, executable):
            return name
    version = "{}.{}".format(*sys.version_info[:2])
    if WINDOWS and shutil.which("py") and not is_venv(sys.prefix, sys.base_prefix):
        return f"py -{version}"
    if not WINDOWS:
        return shlex.quote(str(executable))
    if not re.search(r"[^\w.:/\\~-]", str(executable)):
        return str(executable)
    # PowerShell needs an & before quotes, and cmd, which sets PROMPT, refuses it.
    return f'"{executable}"' if "PROMPT" in os.environ else f'& "{executable}"'


def is_venv(prefix: str, base: str) -> bool:
    """Return whether this Python is in a virtual environment, which the launcher `py` does not know."""
    return prefix != base


def show_end(lines: list[str]) -> None:
    for line in lines[-12:]:
        say(f"  | {line}")


def say(text: str) -> None:
    """Print to stderr, because stdout may be one JSON document; in ASCII, because a console may know nothing else."""
    print("bootstrap:", text.encode("ascii", "backslashreplace").decode(), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
