"""Process 1 of our image: makes the container a machine that SSH reaches, and stays until it is told to end.

    docker run IMAGE                  a machine: PUBLIC_KEY says who may log in
    docker run IMAGE selftest         looks whether everything works here, a line each
    docker run IMAGE COMMAND ...      any other command instead

A machine never ends because of a bad start: an orchestrator would start it again and again, and the reason would be
gone with each. It says `sniperface bad start: ...` in the container's log and waits. A good start says there, each at
the beginning of a line:

    sniperface host key: ssh-ed25519 AAAA...     whoever may read the log knows this machine from now on
    sniperface hardware: gpus=1 memory_gib=61.5  whoever rents it sees whether it is what was asked for
    sniperface ready: ...

Standard library only, Python 3.9 or newer; `install` is for the Dockerfile.
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

assert sys.platform != "win32"  # for mypy, which checks this file for Windows, too

HERE = Path(__file__).resolve().parent
ENVIRONMENT = Path("/run/sniperface/environment")
GUARD = Path("/run/sniperface/guard")  # written by the machine's guard: how to start it, should it be killed
NOT_A_SESSIONS = (b"OLDPWD", b"PWD", b"SHLVL", b"TERM", b"_")  # of this process alone
PUBLIC_KEY_FILE = Path("/run/sniperface-public-key")  # where compose.yaml puts a .pub file of the user's
KEYS = Path("/etc/ssh/sniperface")  # a folder of its own, so that a volume can keep the host key
AUTHORIZED_KEYS = KEYS / "authorized_keys"
HOST_KEY = KEYS / "ssh_host_ed25519_key"
CONFIGURATION = Path("/etc/ssh/sshd_config.d/00-sniperface.conf")
SSHD = "/usr/sbin/sshd"
PAUSE_S = (1, 2, 5, 10, 30)  # between two starts of an sshd that ends
GUARD_EVERY_S = 10.0
GUARD_AT_LEAST_S = 60.0  # between two looks, for one that ends again and again
SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}
LAST_S = 5.0  # for processes that are told to end, after the supervisors have

# The keys of PUBLIC_KEY lie outside the home folder: that may be a volume whose owner cannot be changed, and then sshd
# would refuse what lies in it. PAM is left out, as what it does for a login (limits, messages) fails in containers.
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
# Debian's /etc/profile sets PATH anew, without our virtual environment.
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
        os.execv(python, [python, str(HERE / "selftest.py")])  # noqa: S606 - becoming the command is the point
    elif command:
        try:
            os.execvp(command[0], command)  # noqa: S606 - the same
        except OSError as error:
            say(f"cannot run {command[0]}: {error.strerror}; there are: selftest, or any program of the image")
            sys.exit(127)
    else:
        Machine().run()


def install() -> None:
    """What needs no container yet: the SSH server's configuration, and the login shell."""
    login = str(HERE / "login.py")
    write(CONFIGURATION, SSHD_CONFIGURATION.encode(), 0o644)
    write(Path("/etc/profile.d/sniperface.sh"), PROFILE.encode(), 0o644)
    with open("/etc/shells", "a", encoding="utf-8") as shells:
        shells.write(f"{login}\n")
    # A password of '*' fits nothing; of '!' means locked, and then sshd would refuse keys, too.
    subprocess.run(["usermod", "--shell", login, "--password", "*", "root"], check=True)


class Machine:
    """From the first step to SIGTERM. Being process 1 also means to collect every orphan that ends."""

    def __init__(self) -> None:
        self.sshd: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.start_at: float | None = None  # when sshd is to be started, in monotonic seconds
        self.ending = False
        self.guard_starts = 0
        self.guard_at = time.monotonic()  # when to look for it next

    def run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # `pause` is where they are seen
        processes.adopt_orphans()  # for `docker run --init` and --pid=host, where something else is process 1
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
            say("nobody can log in; this container stays, so that this can be read")
        asked = False
        while not asked:
            self.look_after_sshd()
            self.look_after_guard()
            due = self.guard_at if self.start_at is None else min(self.guard_at, self.start_at)
            asked = pause(due - time.monotonic())
            self.collect()
        self.end()

    def look_after_sshd(self) -> None:
        """Start it when it is due. It has no reason to end, but a machine that cannot be reached helps nobody."""
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
        except OSError as error:  # this process is the container: it must not end for that, and with it the job
            wait_s = PAUSE_S[min(self.starts, len(PAUSE_S)) - 1]
            self.start_at = time.monotonic() + wait_s
            say(f"sshd cannot be started: {error}; again in {wait_s} s")
            return
        say(f"ready: sshd started ({self.starts}), Python is {os.environ.get('SNIPERFACE_PYTHON', sys.executable)}")

    def look_after_guard(self) -> None:
        """Start it again when it was killed, or when this container was: without one, nobody ends what is paid for.

        A machine from which `guard.json` was removed wants none.
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
        except (OSError, ValueError, KeyError, TypeError):  # there is none, or its code is gone
            return
        self.guard_starts += 1
        self.guard_at = time.monotonic() + min(GUARD_EVERY_S * self.guard_starts, GUARD_AT_LEAST_S)
        say(f"the guard of this machine was gone: started again ({self.guard_starts})")

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
        """First the supervisors, who have their jobs write a checkpoint; how long that may take, the engine decides.

        Then everything else. Ranks that were told first would end before their supervisor knew why.
        """
        self.ending = True
        say("told to end")
        supervisors = [pid for pid in processes.descendants(os.getpid()) if is_supervisor(pid)]
        tell(supervisors)
        while any(processes.is_alive(pid) for pid in supervisors):
            if pause(0.2):
                tell(supervisors)  # asked twice, they end at once
            self.collect()
        tell(processes.descendants(os.getpid()))
        limit = time.monotonic() + LAST_S
        while processes.descendants(os.getpid()) and time.monotonic() < limit:
            pause(0.1)
            self.collect()


def write_environment() -> None:
    """For login.py. Secrets may be in it, so nobody else reads it."""
    entries = [name + b"=" + value for name, value in os.environb.items() if name not in NOT_A_SESSIONS]
    ENVIRONMENT.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write(ENVIRONMENT, b"".join(entry + b"\0" for entry in entries), 0o600)


def authorized_keys(public_key: str, at_home: str = "") -> str:
    """The lines of PUBLIC_KEY that are public keys. Lines that are not are said; that none is, is a bad start."""
    if "PRIVATE KEY" in public_key:
        raise BadStart("PUBLIC_KEY holds a private key; give the .pub file beside it, and make a new pair")
    good = []
    lines = public_key.replace("\r", "\n").split("\n")  # Windows' line ends come as \r\n, or as a \r alone
    for number, line in enumerate(filter(None, map(str.strip, lines)), start=1):
        if line.startswith("#"):
            continue
        if is_key(line):
            good.append(line)
        else:
            say(f"PUBLIC_KEY: entry {number} is no public key, such as ssh-ed25519 AAAA... me@laptop; left out")
    if not good and not any(is_key(line) for line in at_home.splitlines()):
        what = "holds no public key" if public_key.strip() else "is not set"
        raise BadStart(f"PUBLIC_KEY {what}: give the container PUBLIC_KEY='ssh-ed25519 AAAA... me@laptop'")
    return "".join(f"{line}\n" for line in good)


def is_key(line: str) -> bool:
    """Whether a line of authorized_keys, with options or without, holds a key: the key names its own kind inside."""
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
    """What a file holds, or nothing: it may come with a volume, or an image made from ours, and need not be there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def host_key() -> str:
    """The public half of this container's own key, made at its first start; a restart keeps it."""
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
    """What this container may use: its GPUs are devices in it, its memory is its cgroup's limit or all there is."""
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    found = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    limits = [int(found[1]) * 1024] if found else []
    for path in ("memory.max", "memory/memory.limit_in_bytes"):  # of cgroups version 2, and 1
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
            limits.append(int(Path("/sys/fs/cgroup", path).read_text(encoding="ascii")))
    return f"gpus={gpus}" + (f" memory_gib={min(limits) / 2**30:.1f}" if limits else "")


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock on a file, as deploy/pod/base/lock.py takes it."""
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
    """Whether Python runs as one; the tmux and the shells around it have its name in their own command lines."""
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
    """Until a child ends, an end is asked for, or the limit; whether an end was asked for."""
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
