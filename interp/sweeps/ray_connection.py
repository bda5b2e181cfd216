"""A connection to a Ray cluster: one that this process has, one that it joins, or one that it starts.

1. A Ray that this process is connected to already is used as it is, and left as it is.
2. An address is tried before Ray is given it, because Ray tries one that nobody answers at for minutes.
3. What is joined or started here is quiet, and is left again at the end; a cluster that was started here ends then.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interp.errors import InterpError

REACH = 10.0  # seconds for an address to answer
# Ray tells of lost workers on stdout, where tables go; the log of `interp.sweeps.ray_executor` tells of them, too.
RAYLET = "worker died or was killed|killed .*memory|memory .*killed"


def ray_module() -> Any:
    """`ray`, imported so that it does not write to stdout when a worker is lost.

    Raises:
        InterpError: it is not installed.
    """
    try:
        with _environment("RAY_DEDUP_LOGS_SKIP_REGEX", RAYLET):
            import ray
    except ImportError as error:
        raise InterpError("a sweep on a cluster needs Ray: pip install 'interp[ray]'") from error
    return ray


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """A variable for as long as a library reads it; one that the user has set stays."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)


@contextmanager
def connection(ray: Any, address: str | None, *, cpus: int | None = None) -> Iterator[None]:
    """Be connected for as long as the block runs.

    Args:
        ray: the module.
        address: None for what this process is connected to, or else a cluster of this machine alone; "auto" for what
            this process is connected to, or else the cluster that this machine belongs to; "host:port" of a head node.
        cpus: how many a cluster that is started here shall count; None counts them.

    Raises:
        InterpError: there is no cluster at this address, or this process is connected to another one.
    """
    if ray.is_initialized():
        here = ray.get_runtime_context().gcs_address
        if address not in (None, "auto", here):
            raise InterpError(f"this process is connected to the Ray cluster at {here}, not to one at {address!r}")
        yield
        return
    options: dict[str, Any] = {"address": address, "logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        options |= {"address": "local", "include_dashboard": False, "num_cpus": cpus}
    else:
        _check_address(address)
    try:
        with _environment("RAY_USAGE_STATS_ENABLED", "0"):
            ray.init(**options)
    except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError, ...
        what = "could be started here" if address is None else f"could be joined at {address!r}"
        why = str(error)
        if "AuthenticationError" in f"{error!r} {error.__cause__}":
            why = (
                "it asks for a token, which Ray has not found here; on a machine of the cluster the address 'auto' "
                "may do, or see Ray's documentation of token authentication"
            )
        raise InterpError(f"no Ray cluster {what}: {why}") from error
    try:
        yield
    finally:
        ray.shutdown()  # ends a cluster that was started here, and leaves one that was joined


def _check_address(address: str) -> None:
    """Refuse an address that nobody answers at; Ray would try for minutes."""
    found = address
    if address == "auto":
        # Where Ray looks for it. A cluster that has crashed leaves its file behind.
        file = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
        found = os.environ.get("RAY_ADDRESS") or (file.read_text().strip() if file.exists() else "")
        if not found or found == "auto":
            return  # Ray looks for processes of its own on this machine, and says at once when there are none
    if "://" in found:
        raise InterpError(
            f"Ray Client addresses such as {found!r} are not supported: run this on a machine of the cluster, "
            "with the address 'auto'"
        )
    host, _, port = found.rpartition(":")
    if not host or not port.isdigit():
        raise InterpError(
            f"{found!r} is not the address of a Ray cluster, expected 'auto' or 'host:port' of its head node"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH).close()
    except (OSError, OverflowError) as error:
        raise InterpError(
            f"no Ray cluster answers at {found!r}: {error}; `ray start --head` starts one, and says its address"
        ) from error
