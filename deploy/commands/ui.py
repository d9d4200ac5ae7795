"""Serve the page of all runs on this computer: one process, in the foreground, until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from deploy.commands.ui_pages import Pages
from deploy.errors import WrongUse, bootstrap_command, command
from deploy.ui.screen import Screen

HERE = "127.0.0.1"


def ui(project: Path, port: str | None, screen: Screen) -> int:
    """Serve the page until Ctrl-C, and print its address. Raises WrongUse for a port that cannot be used."""
    server = _server()
    with _listening(_port(port)) as listener, _no_questions():
        token = secrets.token_urlsafe(32)
        number = listener.getsockname()[1]
        screen.say("The page of your runs; the address contains the key to it. Ctrl-C ends the page, and no run.")
        screen.say(f"http://{HERE}:{number}/?token={token}")
        with contextlib.suppress(KeyboardInterrupt):  # the usual end
            server.serve(Pages(project), listener, token)
    return 0


def _server() -> ModuleType:
    """The module that serves. Raises WrongUse if its packages are missing."""
    try:
        from deploy.ui.web import server
    except ImportError as missing:
        raise WrongUse(
            f"the page needs packages that are not installed ({missing.name}): start it with what installs them",
            next_command=bootstrap_command("ui", "ui"),
        ) from missing
    return server


def _port(text: str | None) -> int:
    if text is None:
        return 0
    if not text.isascii() or not text.isdigit() or not 1024 <= int(text) < 1 << 16:
        raise WrongUse(f"--port {text} is not a port for this: give a number from 1024 to 65535, such as 8601")
    return int(text)


@contextlib.contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    """Listen on this computer's own address; 0: on a free port. Raises WrongUse for a port that is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with listener:
        if sys.platform == "win32":  # there, another program could otherwise listen on the same port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:  # a port whose last connections are still closing is free
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HERE, port))
            listener.listen()  # now, so that the printed address answers at once
        except OSError as error:
            raise WrongUse(
                f"--port {port} cannot be used ({error.strerror}): give another, or none for a free one",
                next_command=command("ui"),
            ) from error
        yield listener


@contextlib.contextmanager
def _no_questions() -> Iterator[None]:
    """Take the terminal's input away: a thread that connects must not wait for an answer to a question there."""
    before = sys.stdin
    with open(os.devnull, encoding="utf-8") as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = before
