"""The HTTP server of the emulators, and of tests with clients that go away."""

from __future__ import annotations

import sys
from http.server import ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Prints nothing about a client that goes away.

    A client may close a connection before it has read the answer. The thread of that connection finds it out later,
    perhaps after its test, when the stream that it would print to is closed.
    """

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)
