#!/usr/bin/python3 -IS
"""root's login shell in our image: bash, with the container's environment.

sshd starts every session with a clean environment, so what `docker run --env` or a provider gave the container would
be missing there. A login shell is the one thing that sshd runs for everything: a command, a terminal, sftp; and what
starts inside, tmux above all, inherits from it. (sshd's SetEnv and ~/.ssh/environment cannot hold a line break, bash's
startup files are not read for commands or depend on `set -u`, and /etc/environment has quoting of its own.)

init.py writes the environment, as it is in /proc, with a NUL behind each entry: any byte may be in a value. Values
reach bash through execve alone, never through a command line, where other processes could read them.
"""

import os
import sys

assert sys.platform != "win32"  # for mypy, which checks this file for Windows, too

ENVIRONMENT = "/run/sniperface/environment"  # 0600
SESSION = (b"HOME", b"LOGNAME", b"MAIL", b"PWD", b"SHELL", b"TERM", b"USER")  # sshd knows these better, and SSH_*


def read(path: str) -> "dict[bytes, bytes]":
    with open(path, "rb") as file:
        entries = (entry.partition(b"=") for entry in file.read().split(b"\0"))
        return {name: value for name, equals, value in entries if equals}


def main() -> None:
    environment = dict(os.environb)
    try:
        given = read(ENVIRONMENT)
    except OSError as error:  # better a shell without it than none
        given = {}
        sys.stderr.write(f"sniperface: the container's environment cannot be read: {error}\n")
    for name, value in given.items():
        if name not in SESSION and not name.startswith(b"SSH_"):
            environment[name] = value
    environment[b"SHELL"] = b"/bin/bash"
    # /etc/profile sets another PATH in login shells; /etc/profile.d/sniperface.sh puts this one back.
    environment[b"SNIPERFACE_PATH"] = environment.get(b"PATH", b"/usr/bin:/bin")
    arguments = [os.fsencode(word) for word in sys.argv[1:]]
    # Without arguments sshd and tmux mean a terminal's login shell. Their way to say so, a dash before the name, is
    # lost where the kernel starts a script through its first line.
    os.execve(b"/bin/bash", [b"bash" if arguments else b"-bash", *arguments], environment)  # noqa: S606


if __name__ == "__main__":
    main()
