"""Process 1 of our image: make the container reachable by SSH, and run until SIGTERM.

start.sh runs it in a stock image of RunPod too, where it need not be process 1.

    docker run IMAGE                  a machine: PUBLIC_KEY says who may log in
    docker run IMAGE selftest         looks whether everything works here, a line each
    docker run IMAGE COMMAND ...      any other command instead

The container does not exit after a bad start: an orchestrator would restart it again and again, and the reason would be
lost each time. It prints `sniperface bad start: ...` to the container's log and waits. A good start prints there, each
at the start of a line:

    sniperface host key: ssh-ed25519 AAAA...     a client that can read the log can verify this machine
    sniperface hardware: gpus=1 memory_gib=61.5  to compare with what was rented
    sniperface ready: ...

Standard library only, Python 3.9 or newer. The Dockerfile, or start.sh, runs `install`.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

from deploy.pod.base import processes
from deploy.pod.image.unattended import Switch

assert sys.platform != "win32"  # for mypy, which checks this file for Windows, too

HERE = Path(__file__).resolve().parent
ENVIRONMENT = Path("/run/sniperface/environment")
GUARD = Path("/run/sniperface/guard")  # the guard writes here how to restart it
NOT_A_SESSIONS = (b"OLDPWD", b"PWD", b"SHLVL", b"TERM", b"_")  # only for this process
PUBLIC_KEY_FILE = Path("/run/sniperface-public-key")  # where compose.yaml puts a .pub file of the user's
KEYS = Path("/etc/ssh/sniperface")  # a folder of its own, so that a volume can keep the host key
AUTHORIZED_KEYS = KEYS / "authorized_keys"
HOST_KEY = KEYS / "ssh_host_ed25519_key"
CONFIGURATION = Path("/etc/ssh/sshd_config.d/00-sniperface.conf")
SERVER = Path("/etc/ssh/sshd_config")
INCLUDE = "Include /etc/ssh/sshd_config.d/*.conf"
SHELLS = Path("/etc/shells")
SSHD = "/usr/sbin/sshd"
PAUSE_S = (1, 2, 5, 10, 30)  # before a restart of sshd
GUARD_EVERY_S = 10.0
GUARD_AT_LEAST_S = 60.0  # longest time between two checks, for a guard that ends again and again
SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}
LAST_S = 5.0  # from SIGTERM to exit for the other processes, after the supervisors have ended

# The keys of PUBLIC_KEY are outside the home folder: that may be a volume whose owner cannot be changed, and sshd would
# refuse files there. PAM is off, because what it does for a login (limits, messages) fails in containers.
SSHD_CONFIGURATION = f"""\
HostKey {HOST_KEY}
AuthorizedKeysFile {AUTHORIZED_KEYS} .ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
X11Forwarding no
MaxSessions 64
MaxStartups 64:30:256
ClientAliveInterval 30
ClientAliveCountMax 6
"""
# Debian's /etc/profile resets PATH, without our virtual environment.
PROFILE = '[ -z "${SNIPERFACE_PATH-}" ] || { PATH="$SNIPERFACE_PATH"; export PATH; }\n'

KEY = re.compile(r"(?:^|\s)((?:ssh|ecdsa|sk-ssh|sk-ecdsa)-[\w@.-]+) +([A-Za-z0-9+/]+=*)(?= |$)")


class BadStart(Exception):
    """Why nobody can log in."""


def main() -> None:
    command = sys.argv[1:]
    if command == ["install"]:
        install()
    elif command == ["selftest"]:
        python = os.environ.get("SNIPERFACE_PYTHON") or sys.executable
        os.execv(python, [python, str(HERE / "selftest.py")])  # noqa: S606 - replaces this process on purpose
    elif command:
        try:
            os.execvp(command[0], command)  # noqa: S606 - the same
        except OSError as error:
            say(f"cannot run {command[0]}: {error.strerror}; give selftest, or any program of the image")
            sys.exit(127)
    else:
        Machine().run()


def install() -> None:
    """Write the SSH server's configuration and set the login shell. Running it twice changes nothing."""
    login = str(HERE / "login.py")
    for folder in (CONFIGURATION.parent, Path("/etc/profile.d")):
        folder.mkdir(parents=True, exist_ok=True)
    write(CONFIGURATION, SSHD_CONFIGURATION.encode(), 0o644)
    server = text_of(SERVER)
    if INCLUDE not in server.splitlines():  # first, because sshd keeps the first value of each option
        write(SERVER, f"{INCLUDE}\n{server}".encode(), 0o644)
    write(Path("/etc/profile.d/sniperface.sh"), PROFILE.encode(), 0o644)
    if login not in text_of(SHELLS).splitlines():
        with SHELLS.open("a", encoding="utf-8") as shells:
            shells.write(f"{login}\n")
    # '*' matches no password. '!' would lock the account, and sshd would refuse keys too.
    subprocess.run(["usermod", "--shell", login, "--password", "*", "root"], check=True)


class Machine:
    """The container from start to SIGTERM. As process 1 it also reaps every orphan."""

    def __init__(self) -> None:
        self.sshd: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.start_at: float | None = None  # monotonic time of the next start of sshd
        self.ending = False
        self.guard_starts = 0
        self.guard_at = time.monotonic()  # monotonic time of the next check
        self.switch = Switch(os.environ, GUARD, say)

    def run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # `pause` receives them
        processes.adopt_orphans()  # with `docker run --init` and --pid=host another process is process 1
        try:
            write_environment()
            KEYS.mkdir(mode=0o700, exist_ok=True)
            public_keys = f"{os.environ.get('PUBLIC_KEY', '')}\n{text_of(PUBLIC_KEY_FILE)}"
            keys = authorized_keys(public_keys, at_home=text_of(Path.home() / ".ssh" / "authorized_keys"))
            write(AUTHORIZED_KEYS, keys.encode(), 0o600)
            say(f"host key: {host_key()}")
            say(f"hardware: {hardware()}")
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
            self.start_at = time.monotonic()
        except Exception as error:
            say(f"bad start: {error or type(error).__name__}")
            say("login is impossible; this container keeps running, so that you can read this")
        asked = False
        while not asked:
            self.look_after_sshd()
            self.look_after_guard()
            self.switch.look(self.sshd.pid if self.sshd else None)
            due = self.guard_at if self.start_at is None else min(self.guard_at, self.start_at)
            asked = pause(min(due, self.switch.due) - time.monotonic())
            self.collect()
        self.end()

    def look_after_sshd(self) -> None:
        """Start sshd when it is due: at first, and again if it ended, because the machine would be unreachable."""
        if self.start_at is None or time.monotonic() < self.start_at:
            return
        self.start_at = None
        self.starts += 1
        try:
            self.sshd = subprocess.Popen(
                [SSHD, "-D", "-e"],  # -e: to the container's log
                stdin=subprocess.DEVNULL,
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS) and None,
            )
        except OSError as error:  # do not exit: this would end the container and the job
            wait_s = PAUSE_S[min(self.starts, len(PAUSE_S)) - 1]
            self.start_at = time.monotonic() + wait_s
            say(f"sshd cannot be started: {error}; again in {wait_s} s")
            return
        say(f"ready: sshd started ({self.starts}), Python is {os.environ.get('SNIPERFACE_PYTHON', sys.executable)}")

    def look_after_guard(self) -> None:
        """Restart the guard if it was killed or the container was restarted. Without it the machine has no limits.

        Does nothing if `guard.json` was removed.
        """
        if time.monotonic() < self.guard_at:
            return
        self.guard_at = time.monotonic() + GUARD_EVERY_S
        try:
            told = json.loads(GUARD.read_text(encoding="utf-8"))
            if not Path(told["needs"]).exists() or is_locked(Path(told["lock"])):
                return
            subprocess.Popen(
                told["argv"],
                cwd=told["cwd"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS) and None,
            )
        except (OSError, ValueError, KeyError, TypeError):  # there is no guard, or its code is gone
            return
        self.guard_starts += 1
        self.guard_at = time.monotonic() + min(GUARD_EVERY_S * self.guard_starts, GUARD_AT_LEAST_S)
        say(f"the guard of this machine had ended: started again ({self.guard_starts})")

    def collect(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self.sshd is not None and pid == self.sshd.pid:
                code = os.waitstatus_to_exitcode(status)
                self.sshd.returncode = code
                wait_s = PAUSE_S[min(self.starts, len(PAUSE_S)) - 1]
                self.start_at = time.monotonic() + wait_s
                if not self.ending:
                    say(f"sshd ended with exit code {code}, its reason is above; again in {wait_s} s")

    def end(self) -> None:
        """Stop the supervisors first, so that their jobs write a checkpoint; the container engine limits the time.

        Then stop everything else. Ranks stopped earlier would end before their supervisor knows why.
        """
        self.ending = True
        say("stopped by a signal")
        supervisors = [pid for pid in processes.descendants(os.getpid()) if is_supervisor(pid)]
        tell(supervisors)
        while any(processes.is_alive(pid) for pid in supervisors):
            if pause(0.2):
                tell(supervisors)  # a second signal ends them at once
            self.collect()
        tell(processes.descendants(os.getpid()))
        limit = time.monotonic() + LAST_S
        while processes.descendants(os.getpid()) and time.monotonic() < limit:
            pause(0.1)
            self.collect()


def write_environment() -> None:
    """Write the container's environment for login.py. It may contain secrets, so the file has mode 0600."""
    entries = [name + b"=" + value for name, value in os.environb.items() if name not in NOT_A_SESSIONS]
    ENVIRONMENT.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write(ENVIRONMENT, b"".join(entry + b"\0" for entry in entries), 0o600)


def authorized_keys(public_key: str, at_home: str = "") -> str:
    """Return the valid keys of PUBLIC_KEY; prints invalid lines. Raises BadStart if it and `at_home` have no key."""
    if "PRIVATE KEY" in public_key:
        raise BadStart("PUBLIC_KEY holds a private key; give the .pub file beside it, and make a new pair")
    good = []
    lines = public_key.replace("\r", "\n").split("\n")  # Windows line ends arrive as \r\n or as \r
    for number, line in enumerate(filter(None, map(str.strip, lines)), start=1):
        if line.startswith("#"):
            continue
        if is_key(line):
            good.append(line)
        else:
            say(f"PUBLIC_KEY: entry {number} is not a public key, such as ssh-ed25519 AAAA... me@laptop; ignored")
    if not good and not any(is_key(line) for line in at_home.splitlines()):
        what = "holds no public key" if public_key.strip() else "is not set"
        raise BadStart(f"PUBLIC_KEY {what}: give the container PUBLIC_KEY='ssh-ed25519 AAAA... me@laptop'")
    return "".join(f"{line}\n" for line in good)


def is_key(line: str) -> bool:
    """Whether an authorized_keys line, with or without options, contains a key whose data names the same type."""
    found = KEY.search(line)
    if not found or line.startswith("#"):
        return False
    try:
        blob = base64.b64decode(found.group(2), validate=True)
        (length,) = struct.unpack(">I", blob[:4])
    except (binascii.Error, struct.error):
        return False
    return len(blob) > 4 + length and blob[4 : 4 + length] == found.group(1).encode()


def text_of(path: Path) -> str:
    """Return a file's text; empty if it cannot be read. A volume or an image based on ours may provide it."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def host_key() -> str:
    """Return the container's public host key. Creates the key at the first start; a restart keeps it."""
    public = HOST_KEY.with_name(f"{HOST_KEY.name}.pub")
    if not HOST_KEY.exists() or not public.exists():
        for path in (HOST_KEY, public):
            path.unlink(missing_ok=True)
        made = subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(HOST_KEY)],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise BadStart(f"the host key could not be made: {made.stderr.strip()}")
    return " ".join(public.read_text(encoding="utf-8").split()[:2])


def hardware() -> str:
    """Describe the container's hardware: number of GPU devices, and memory within the cgroup's limit."""
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    found = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    limits = [int(found[1]) * 1024] if found else []
    for path in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroups version 2 and 1
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
            limits.append(int(Path("/sys/fs/cgroup", path).read_text(encoding="ascii")))
    return f"gpus={gpus}" + (f" memory_gib={min(limits) / 2**30:.1f}" if limits else "")


def is_locked(path: Path) -> bool:
    """Whether a living process holds a lock file of deploy/pod/base/lock.py."""
    import fcntl

    try:
        with path.open("r+b") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def is_supervisor(pid: int) -> bool:
    """Whether a process is a supervisor. Only Python counts: tmux and shells around it have its name as argument."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"python" in words[0].rpartition(b"/")[2] and b"deploy.pod.supervisor" in words


def tell(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue


def pause(limit_s: float) -> bool:
    """Wait until a child ends, a stop signal arrives, or the limit is over. Returns whether it was a stop signal."""
    seen = signal.sigtimedwait(SIGNALS, max(limit_s, 0))
    return seen is not None and seen.si_signo != signal.SIGCHLD


def write(path: Path, data: bytes, mode: int) -> None:
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)


def say(text: str) -> None:
    print(f"sniperface {text}", flush=True)


if __name__ == "__main__":
    main()
