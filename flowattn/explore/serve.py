"""Serve: the page on this machine alone, behind a random token."""

import errno
import os
import secrets
import signal
import socket
import webbrowser
from collections.abc import Callable
from typing import Any

import panel as pn
from panel.io.resources import DIST_DIR
from panel.io.server import get_server
from tornado.web import StaticFileHandler

from ..errors import InputError, quoted
from ..sweeps import Again
from .look import FOR_PAGE
from .page import Page
from .solver import Solver
from .store import Stored, View

_HOST = "127.0.0.1"
_LAST_PORT = 65535


def serve(
    stored: Stored,
    view: View,
    make: Callable[[], Again],
    port: int = 0,
    announce: Callable[[str], None] = print,
    browser: bool = True,
) -> None:
    """Serve the page of a store until the process is interrupted.

    Args:
        stored: the data set.
        view: what is drawn first.
        make: makes the sweep whose cells are solved.
        port: of the page; 0: any that is free.
        announce: called with the address once it answers.
        browser: whether to open it in the browser.

    Raises:
        InputError: for a port that cannot be used.
    """
    _require_free(port)
    token = secrets.token_urlsafe(24)

    def page() -> Any:
        return Page(stored, view, solver).layout

    pn.extension(raw_css=[FOR_PAGE])
    heard = signal.getsignal(signal.SIGINT)
    server = get_server(
        {"/": page},
        port=port,
        address=_HOST,
        # Everything, the websocket and the icon included, lies beneath the token.
        prefix=token,
        ico_path="none",
        extra_patterns=[
            (r"/(favicon\.ico)", StaticFileHandler, {"path": DIST_DIR / "images"})
        ],
        title={"/": f"{stored.title} · flowattn view"},
    )
    signal.signal(signal.SIGINT, heard)  # which Panel replaces
    own = f"{_HOST}:{server.port}"
    address = f"http://{own}/{token}/"
    solver = Solver(make)
    solver.warm(stored.stiff())
    server.start()
    announce(address)
    if browser:
        server.io_loop.add_callback(webbrowser.open, address)
    try:
        server.io_loop.start()
    finally:
        server.stop()


def _require_free(port: int) -> None:
    """Raises `InputError` for a port that cannot be used."""
    if not 0 <= port <= _LAST_PORT:
        raise InputError(
            f"port must be from 0 (any) to {_LAST_PORT}, got {quoted(port)}"
        )
    with socket.socket() as probe:
        # As the server has it: a port whose last connection just ended is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, os.name == "posix")
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            reason = f"port {port} of {_HOST} cannot be used: {error.strerror}"
            if error.errno == errno.EADDRINUSE:
                reason = f"port {port} of {_HOST} is in use"
            raise InputError(
                f"{reason}; choose another, or 0 for any free one"
            ) from None
