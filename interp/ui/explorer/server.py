"""The explorer's server: a page, its scripts, and the requests that compute.

Who may ask? Any page in the same browser can send requests to this machine, so:

1. Every request must name this server as its `Host`: a name of an attacker that leads to 127.0.0.1 (DNS rebinding) is
   refused.
2. What computes must bring the token, which only the printed address has, and come from this server's own page
   (`Origin`), in a body of limited size.
3. Pages may run the scripts of this server and nothing else, and talk to nobody else.

Answers are JSON; an error says in words what was given and what was expected.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from interp.arguments import shown
from interp.errors import InterpError
from interp.hooked.model import HookedModel
from interp.ui.explorer.answers import Answer, answers
from interp.ui.explorer.page_files import files
from interp.ui.explorer.scene import Other
from interp.ui.explorer.worker import BusyError, CancelledRequest, Worker

TOKEN = "x-interp-token"
LARGEST_BODY = 64 * 1024
SLOWEST_BODY = 10.0  # seconds
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
CLOSED = 499  # what servers log for a client that has left; nobody receives it


def make_app(model: HookedModel, *, loaded: str, token: str, port: int, other: Other | None = None) -> Starlette:
    """The server's application.

    Args:
        model: what it shows.
        loaded: the call that loads the model, for scripts.
        token: what requests that compute must bring.
        port: where it is reached, on 127.0.0.1.
        other: a second model, to compare with.
    """
    worker = Worker()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        worker.close()

    guard = _Guard(token, port)

    def served(path: Path, kind: str) -> Callable[[Request], Awaitable[Response]]:
        async def serve(request: Request) -> Response:
            guard.check_host(request)
            return Response(path.read_bytes(), media_type=kind)

        return serve

    def answered(compute: Answer) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            guard.check_host(request)
            guard.check_page(request)
            given = await _body(request)
            # What is sent is made into text in the worker too: a large answer must not keep others waiting.
            text = await worker.run(lambda stop: json.dumps(compute(given, stop), allow_nan=False), _closed(request))
            return Response(text, media_type="application/json")

        return answer

    routes = [Route(path, served(*file), methods=["GET"]) for path, file in files().items()]
    routes += [
        Route(f"/api/{name}", answered(compute), methods=["POST"])
        for name, compute in answers(model, loaded, other).items()
    ]
    handlers = {
        HTTPException: partial(_refused, routes),
        InterpError: _unprocessable,
        BusyError: _busy,
        CancelledRequest: _cancelled,
        ClientDisconnect: _cancelled,
        Exception: _failed,
    }
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)  # type: ignore[arg-type]
    app.add_middleware(_Headers)
    return app


class _Headers:
    """Puts `HEADERS` on every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        await self.app(scope, receive, with_headers)


class _Guard:
    """Who may ask (1. and 2.)."""

    def __init__(self, token: str, port: int) -> None:
        self.token = token.encode()
        self.hosts = (f"127.0.0.1:{port}", f"localhost:{port}")

    def check_host(self, request: Request) -> None:
        host = request.headers.get("host", "")
        if host not in self.hosts:
            raise HTTPException(403, f"the host must be {self.hosts[0]}, not {shown(host)}")

    def check_page(self, request: Request) -> None:
        origin, expected = request.headers.get("origin"), f"http://{request.headers['host']}"
        if origin != expected:
            raise HTTPException(403, f"requests must come from the page at {expected}, not from {shown(origin)}")
        given = request.headers.get(TOKEN)
        if given is None or not hmac.compare_digest(given.encode(), self.token):
            what = "wrong" if given else "missing"
            raise HTTPException(403, f"the token is {what}: open the address that `interp explore` printed")


async def _body(request: Request) -> Any:
    """The JSON of a request."""
    too_large = HTTPException(413, f"a request must have at most {LARGEST_BODY:,} bytes")
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > LARGEST_BODY:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(SLOWEST_BODY):
            async for part in request.stream():
                body += part
                if len(body) > LARGEST_BODY:
                    raise too_large
    except TimeoutError:
        raise HTTPException(408, f"the request did not arrive within {SLOWEST_BODY:g} seconds") from None
    try:
        return json.loads(body.decode())
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        raise HTTPException(400, f"the request must be JSON: {error}") from None


async def _closed(request: Request) -> None:
    """Ends when the browser has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _refused(routes: list[Route], request: Request, error: HTTPException) -> Response:
    told = error.detail
    if error.status_code == 404:
        told = f"there is nothing at {shown(request.url.path)}; what computes is at {_listed(routes)}"
    elif error.status_code == 405:
        told = f"{request.url.path} does not take {request.method}"
    return JSONResponse({"error": told}, error.status_code, headers=error.headers)


def _listed(routes: list[Route]) -> str:
    return ", ".join(route.path for route in routes if route.path.startswith("/api/"))


def _unprocessable(request: Request, error: InterpError) -> Response:
    return JSONResponse({"error": str(error)}, 422)


def _busy(request: Request, error: BusyError) -> Response:
    return JSONResponse({"error": str(error)}, 503)


def _cancelled(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the request was cancelled"}, CLOSED)


def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"the server could not answer: {type(error).__name__}: {error}"}, 500)
