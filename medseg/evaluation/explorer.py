"""The table of numbers in a browser: D-Tale, on this machine only."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

import pandas as pd

from medseg.project import UserError

LOOPBACK = "127.0.0.1"

TITLE = "Metrics"


def explore(table: pd.DataFrame, port: int, opened: Callable[[str], None]) -> None:
    """Serves a table with D-Tale until it is interrupted.

    It listens on the loopback address. In a Kubeflow notebook, which has ``NB_PREFIX``, the
    notebook's proxy leads to it, and its pages take their parts from there.

    Args:
        table: The table.
        port: Where to listen; 0 takes any free port.
        opened: Is told the address, or in a notebook the path on the notebook's host.

    Raises:
        UserError: D-Tale is not installed, or the port is taken or not allowed.
    """
    with _listening(port) as listener:
        build_app, startup, make_server = _dtale()
        port = listener.getsockname()[1]
        address = f"http://{LOOPBACK}:{port}"
        prefix = os.environ.get("NB_PREFIX", "").rstrip("/")
        app_root = f"{prefix}/proxy/{port}" if prefix else None
        app = build_app(address, reaper_on=False, host=LOOPBACK, app_root=app_root)
        if app_root is None:  # else the proxy passes the notebook's own name on
            app.config["TRUSTED_HOSTS"] = [LOOPBACK, "localhost"]
        view = startup(
            address,
            data=table,
            ignore_duplicate=True,
            allow_cell_edits=False,
            hide_shutdown=True,
            precision=4,
            app_root=app_root,
            main_title=TITLE,
        )
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
        server = make_server(LOOPBACK, port, app, threaded=True, fd=listener.fileno())
        opened(f"{app_root or address}/dtale/main/{view._data_id}")
        server.serve_forever()


def _dtale() -> tuple[Any, Any, Any]:
    try:
        from dtale.app import build_app
        from dtale.views import startup
        from werkzeug.serving import make_server
    except ModuleNotFoundError as error:
        raise UserError(
            f"D-Tale is not installed (no module {error.name}): pip install "
            "'kfp-medseg[runtime,explore]'."
        ) from None
    return build_app, startup, make_server


def _listening(port: int) -> socket.socket:
    try:
        return socket.create_server((LOOPBACK, port))
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        what = "taken" if error.errno == errno.EADDRINUSE else "not allowed to users"
        raise UserError(f"port {port} is {what}: give another one with --port.") from None
