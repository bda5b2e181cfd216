"""An explorer that is served, on a free port of this machine, for as long as a `with` block runs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from interp.hooked.model import HookedModel
from interp.ui.explorer.scene import Other

TOKEN = "the-token-of-tests"


@contextmanager
def served(model: HookedModel, other: Other | None = None) -> Iterator[str]:
    """Its address, without the token."""
    import uvicorn

    from interp.ui.explorer.server import make_app

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        app = make_app(model, loaded='interp.load("toy")', token=TOKEN, port=port, other=other)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()
