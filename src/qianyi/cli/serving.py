"""Pages that are served on this machine alone."""

import os
import socket
import sys
from contextlib import suppress
from typing import NoReturn

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from qianyi.errors import ResourceError

HOST = "127.0.0.1"
ONLY_HERE = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
"""A page elsewhere whose name is made to mean this machine gets no answer."""


def serve(app: Starlette, port: int, query: str = "", note: str = "Ctrl-C stops it.") -> NoReturn:
    """Serves an application until Ctrl-C ends the program; its address, with a query, and a note are printed. Port 0: any that is free.

    Raises:
        ResourceError: the port is taken.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise ResourceError(f"port {port}: {(error.strerror or str(error)).lower()}; choose another with --port") from None
        listener.listen()
        print(f"http://{HOST}:{listener.getsockname()[1]}/{query}\n{note}", flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    # An ordinary exit waits for threads, and one may be at work for a while.
    sys.stdout.flush()
    os._exit(0)
