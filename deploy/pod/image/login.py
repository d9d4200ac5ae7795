#!/usr/bin/python3 -IS
"""root's login shell in our image: bash with the container's environment.

sshd starts each session with a clean environment, without the variables of `docker run --env` or the provider. sshd
runs the login shell for every session: command, terminal, sftp. Processes started inside, such as tmux, inherit its
environment. The alternatives fail: sshd's SetEnv and ~/.ssh/environment cannot contain a line break, bash's startup
files are not read for commands or depend on `set -u`, and /etc/environment has its own quoting.

init.py writes the environment in the format of /proc, with a NUL after each entry, so values may contain any other
byte. Values reach bash only through execve, never through a command line, which other processes could read.
"""

import os
import sys

assert sys.platform != "win32"  # for mypy, which checks this file for Windows, too

ENVIRONMENT = "/run/sniperface/environment"  # 0600
SESSION = (b"HOME", b"LOGNAME", b"MAIL", b"PWD", b"SHELL", b"TERM", b"USER")  # sshd sets these and SSH_*


def read(path: str) -> "dict[bytes, bytes]":
    with open(path, "rb") as file:
        entries = (entry.partition(b"=") for entry in file.read().split(b"\0"))
        return {name: value for name, equals, value in entries if equals}


def main() -> None:
    environment = dict(os.environb)
    try:
        given = read(ENVIRONMENT)
    except OSError as error:  # a shell without it is better than none
        given = {}
        sys.stderr.write(f"sniperface: the container's environment cannot be read: {error}\n")
    for name, value in given.items():
        if name not in SESSION and not name.startswith(b"SSH_"):
            environment[name] = value
    environment[b"SHELL"] = b"/bin/bash"
    # /etc/profile resets PATH in login shells; /etc/profile.d/sniperface.sh restores this one.
    environment[b"SNIPERFACE_PATH"] = environment.get(b"PATH", b"/usr/bin:/bin")
    arguments = [os.fsencode(word) for word in sys.argv[1:]]
    # Without arguments sshd and tmux want a login shell. They signal it by a dash before the name, which is lost when
    # the kernel starts a script by its first line.
    os.execve(b"/bin/bash", [b"bash" if arguments else b"-bash", *arguments], environment)  # noqa: S606


if __name__ == "__main__":
    main()
