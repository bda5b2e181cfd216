"""Serving the explorer on this machine alone, until it is interrupted."""

from __future__ import annotations

import secrets
import socket
import webbrowser
from collections.abc import Callable
from contextlib import suppress

from interp.encoder_decoder.model import EncoderDecoder
from interp.errors import ConfigError, OutputError
from interp.hooked.model import HookedModel
from interp.ui.explorer.scene import Other, check_other

HERE = "127.0.0.1"


def serve(
    model: HookedModel,
    *,
    loaded: str,
    port: int,
    browser: bool,
    tell: Callable[[str], None],
    other: Other | None = None,
) -> None:
    """Serve a model's explorer until an interrupt.

    Args:
        model: the model.
        loaded: the call that loads it, for scripts.
        port: where; 0 takes one that is free.
        browser: open the page.
        tell: is given the address.
        other: a second model, to compare with.

    Raises:
        ConfigError: a model that does not predict the next token with one stack; a second one of other tokens; the
            packages are missing.
        OutputError: the port is taken.
    """
    for one in [model] if other is None else [model, other.model]:
        if isinstance(one, EncoderDecoder) or not one.cfg.causal:
            which = "this one" if other is None else one.cfg.model_name or "one of these"
            raise ConfigError(f"explore shows models of one stack that predict the next token, and {which} is another")
    if other is not None:
        check_other(model, other.model)
    try:
        import uvicorn

        from interp.ui.explorer.server import make_app
    except ImportError as error:
        raise ConfigError(
            f"explore needs {error.name}, which is not installed: pip install 'interp[explore]'"
        ) from error
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HERE, port))
        except OSError as error:
            raise OutputError(f"port {port} of {HERE} cannot be used: {error.strerror}; --port 0 takes one") from error
        listener.listen()  # a browser that is quicker than the server waits
        port, token = listener.getsockname()[1], secrets.token_urlsafe(24)
        app = make_app(model, loaded=loaded, token=token, port=port, other=other)
        address = f"http://{HERE}:{port}/#token={token}"
        tell(address)
        if browser:
            webbrowser.open(address)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=1, ws="none"
        )
        with suppress(KeyboardInterrupt):  # which is how it ends
            uvicorn.Server(config).run(sockets=[listener])
