"""GET /live and GET /ready for whoever watches over the process."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mqkit.errors import ConfigError
from mqkit.health import Health

PATHS = ("/live", "/ready")


class Probe:
    """A context manager: serves inside, and only with a port."""

    def __init__(self, health: Callable[[], Health], host: str, port: int | None) -> None:
        self._server: ThreadingHTTPServer | None = None
        if port is None:
            return
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(health))
        except OSError as exc:
            raise ConfigError(f"--health-port {port} on {host}: {exc.strerror or exc}") from exc
        self._server.daemon_threads = True

    @property
    def port(self) -> int | None:
        return None if self._server is None else int(self._server.server_address[1])

    def __enter__(self) -> Probe:
        if self._server is not None:
            threading.Thread(target=self._server.serve_forever, args=(0.2,), name="mqkit-health", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


def answer(path: str, health: Health) -> tuple[int, dict[str, Any]]:
    """Status and document. 503 is what orchestrators take for no."""
    if path not in PATHS:
        return 404, {"error": f"only {' and '.join(PATHS)}"}
    good = health.live if path == "/live" else health.ready
    return 200 if good else 503, {"live": health.live, "ready": health.ready, "reasons": list(health.reasons)}


def _handler(health: Callable[[], Health]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 5.0  # seconds a client may take to ask

        def do_GET(self) -> None:
            status, document = answer(self.path.partition("?")[0], health())
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """A probe every few seconds is nothing to write down."""

    return Handler
