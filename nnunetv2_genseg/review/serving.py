"""A port of this machine, and the server that answers on it until it is interrupted."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn
from starlette.applications import Starlette

from nnunetv2_genseg.config import GenSegError

LOOPBACK = ("127.0.0.1", "localhost")
LARGEST_PORT = 65535


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: name or IPv4 address of this machine.
        port: 0 for any that is free.

    Raises:
        GenSegError: there is no such address or port, or the port is taken.
    """
    if not 0 <= port <= LARGEST_PORT:
        raise GenSegError(f"--port must be a whole number from 0 to {LARGEST_PORT}, found {port}")
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen()
    except OSError as error:
        found.close()
        raise GenSegError(
            f"cannot listen at {host}, port {port} ({error.strerror or error}); choose another --port (0: any that is free) or "
            "--host (a name or an IPv4 address of this machine)"
        ) from error
    return found


def names_of(host: str) -> list[str]:
    """What a browser may call this machine (the Host header), so that no other name leads to the page (DNS rebinding)."""
    names = {*LOOPBACK, host}
    if host not in LOOPBACK:
        names |= {socket.gethostname(), socket.getfqdn()}
        with suppress(OSError):
            names.update(socket.gethostbyname_ex(socket.gethostname())[2])
    return sorted({name.lower() for name in names})  # as browsers send it


def serve(application: Starlette, listener: socket.socket, begun: Callable[[], None]) -> None:
    """Answers requests until SIGINT or SIGTERM.

    Args:
        application: what answers.
        listener: from `listening`.
        begun: is called before the first request is answered.
    """
    settings = uvicorn.Config(
        application, log_level="warning", access_log=False, server_header=False, lifespan="off", timeout_graceful_shutdown=5
    )
    begun()
    with listener, suppress(KeyboardInterrupt):  # uvicorn passes it on after its end
        uvicorn.Server(settings).run(sockets=[listener])
