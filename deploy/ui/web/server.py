"""Serve the page: routes, events that keep an open page up to date, and an end that waits for nobody."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, quote

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from deploy.errors import DeployError, StepFailed, WrongUse
from deploy.ui.web import pages
from deploy.ui.web.guard import REPORT_POLICY, Guard, form_key, same

EVERY_S = 1.0  # between two looks at what an open page shows
SIGN_OF_LIFE_S = 10.0
GRACE_S = 1  # for answers that are under way when the server ends
FORM_BYTES = 4096
CONNECTIONS_MOST = 64
EVENTS = "text/event-stream"
STATIC = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}

Document = Mapping[str, Any]


class Source(Protocol):
    """What the page shows. Every method returns at once, and raises WrongUse for what does not exist."""

    def runs(self, sort: str) -> Document: ...
    def run(self, run_id: str) -> Document: ...
    def compare(self, names: Sequence[str]) -> Document: ...
    def machines(self) -> Document: ...
    def ask_for_bills(self) -> None: ...
    def report(self, run_id: str) -> bytes: ...
    def stop(self, run_id: str) -> None: ...


def serve(source: Source, listener: socket.socket, token: str) -> None:
    """Serve on a bound socket until a signal ends it. Raises KeyboardInterrupt for Ctrl-C, after the end."""
    server_of(source, listener, token).run(sockets=[listener])


def server_of(source: Source, listener: socket.socket, token: str) -> uvicorn.Server:
    """The server of a bound socket, not started yet."""
    site = _Site(source, token)
    config = uvicorn.Config(
        Guard(site.application(), token, listener.getsockname()[1]),
        loop="asyncio:SelectorEventLoop",  # Windows' other loop prints a traceback when a browser drops a connection
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS_MOST,
        timeout_graceful_shutdown=GRACE_S,
    )
    server = uvicorn.Server(config)
    site.is_ending = lambda: server.should_exit
    return server


class _Site:
    def __init__(self, source: Source, token: str) -> None:
        self.source = source
        self.form_key = form_key(token)
        self.is_ending: Callable[[], bool] = lambda: False

    def application(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/", self.runs),
                Route("/compare", self.compare),
                Route("/machines", self.machines),
                Route("/machines/ask", self.ask, methods=["POST"]),
                Route("/runs/{run_id}", self.run),
                Route("/runs/{run_id}/report", self.report),
                Route("/runs/{run_id}/stop", self.stop, methods=["GET", "POST"]),
                Route("/static/{name}", _static),
            ],
            exception_handlers={DeployError: _failed, 404: _missing},
        )

    async def runs(self, request: Request) -> Response:
        sort = request.query_params.get("sort", "")
        return await self._live(request, "Runs", "runs", lambda: pages.body("runs", **self.source.runs(sort)))

    async def run(self, request: Request) -> Response:
        run_id = request.path_params["run_id"]
        return await self._live(request, run_id, "", lambda: pages.of_run(self.source.run(run_id)))

    async def machines(self, request: Request) -> Response:
        def body() -> str:
            return pages.body("machines", form_key=self.form_key, **self.source.machines())

        return await self._live(request, "Machines", "machines", body)

    async def compare(self, request: Request) -> Response:
        names = request.query_params.getlist("run")
        if len(names) < 2:
            raise WrongUse("choose two runs or more in the list of runs, then compare them")
        inside = await run_in_threadpool(_whole, lambda: pages.of_comparison(self.source.compare(names)))
        return HTMLResponse(pages.frame("Compare", inside, live=False, here="runs"))

    async def report(self, request: Request) -> Response:
        content = await run_in_threadpool(self.source.report, request.path_params["run_id"])
        return HTMLResponse(content, headers={"content-security-policy": REPORT_POLICY})

    async def stop(self, request: Request) -> Response:
        """Ask whether to stop a run; with POST, stop it."""
        run_id = request.path_params["run_id"]
        if request.method == "POST":
            await self._check_form(request)
            await run_in_threadpool(self.source.stop, run_id)
            return RedirectResponse(f"/runs/{quote(run_id, safe='')}", status_code=303)
        document = await run_in_threadpool(self.source.run, run_id)
        inside = pages.body("stop", form_key=self.form_key, **document)
        return HTMLResponse(pages.frame(f"Stop {run_id}", inside, live=False, here=""))

    async def ask(self, request: Request) -> Response:
        """Ask the providers what costs money."""
        await self._check_form(request)
        self.source.ask_for_bills()
        return RedirectResponse("/machines", status_code=303)

    async def _check_form(self, request: Request) -> None:
        """Raise WrongUse for a form that our own page did not make."""
        data = b""
        async for piece in request.stream():
            data += piece
            if len(data) > FORM_BYTES:
                raise WrongUse("this form is too large")
        given = parse_qs(data.decode("latin-1")).get("key", [""])[0]
        if not same(given, self.form_key):
            raise WrongUse("this form is not from the page itself: open the page, and use its button")

    async def _live(self, request: Request, title: str, here: str, body: Callable[[], str]) -> Response:
        """A page or, for its script, the stream of its newer versions."""
        if EVENTS in request.headers.get("accept", ""):
            return StreamingResponse(self._versions(body), media_type=EVENTS)
        inside = await run_in_threadpool(_whole, body)
        return HTMLResponse(pages.frame(title, inside, live=True, here=here))

    async def _versions(self, body: Callable[[], str]) -> AsyncIterator[str]:
        """Yield a page's body as an event whenever it has changed, until the server ends."""
        sent, quiet_s = None, 0.0
        while not self.is_ending():
            try:
                found = await run_in_threadpool(_whole, body)
            except DeployError as error:  # such as a run whose folder was deleted meanwhile
                found = pages.body("problem", words=error.message)
            if found != sent:
                yield f"data: {json.dumps({'html': found})}\n\n"
                sent, quiet_s = found, 0.0
            elif quiet_s >= SIGN_OF_LIFE_S:
                yield ": still here\n\n"
                quiet_s = 0.0
            await asyncio.sleep(EVERY_S)
            quiet_s += EVERY_S


def _whole(body: Callable[[], str]) -> str:
    """Make a page's body. Whatever else is wrong with the files of a run is one sentence on its page alone."""
    try:
        return body()
    except DeployError:
        raise
    except Exception as error:
        raise StepFailed(f"this page cannot be shown ({type(error).__name__}: {error})") from error


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in STATIC:
        return await _missing(request)
    content = await run_in_threadpool((Path(__file__).parent / "static" / name).read_bytes)
    return Response(content, media_type=STATIC[name])


async def _failed(_: Request, error: Exception) -> Response:
    assert isinstance(error, DeployError)
    inside = pages.body("problem", words=error.message)
    status = 400 if isinstance(error, WrongUse) else 500
    return HTMLResponse(pages.frame("Problem", inside, live=False, here=""), status_code=status)


async def _missing(_: Request, __: Exception | None = None) -> Response:
    inside = pages.body("problem", words="there is no such page")
    return HTMLResponse(pages.frame("Problem", inside, live=False, here=""), status_code=404)
