"""The management API, for what AMQP cannot tell: which queues and exchanges there are, and what is in hand."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from mqkit.backends.rabbitmq.options import Server
from mqkit.errors import ConfigError, Denied, Unavailable


class Management:
    """
    Reads over HTTP, with the user and password of the URL.

    Source: the page `/api` of the server's own management plugin.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._base = server.management_url
        login = f"{server.username}:{server.password}".encode()
        self._headers = {"Authorization": f"Basic {base64.b64encode(login).decode()}"}

    def queues(self) -> Iterator[dict[str, Any]]:
        """Those that others can use, each with its name, arguments and `messages_unacknowledged`."""
        options = "disable_stats=true&enable_queue_totals=true"  # cheaper for the server, and minutes younger
        for queue in self._get(f"queues/{self._server.quoted_vhost}?{options}"):
            if not queue.get("exclusive"):
                yield queue

    def exchanges(self) -> Iterator[str]:
        for exchange in self._get(f"exchanges/{self._server.quoted_vhost}?columns=name"):
            yield exchange["name"]

    def queues_bound_to(self, exchange: str) -> set[str]:
        path = f"exchanges/{self._server.quoted_vhost}/{quote(exchange, safe='')}/bindings/source"
        return {one["destination"] for one in self._get(path) if one["destination_type"] == "queue"}

    def _get(self, path: str) -> Any:
        """Raises `Unavailable`, `Denied`, `ConfigError`."""
        request = urllib.request.Request(f"{self._base}/{path}", headers=self._headers)
        try:
            with urllib.request.urlopen(request, timeout=self._server.options.patience) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as exc:
            exc.close()
            if exc.code in (401, 403):
                raise Denied(
                    f"{self._server}: user {self._server.username!r} may not use the management API at {self._base}; "
                    "give it the tag 'management'"
                ) from exc
            if exc.code == 404:
                return []
            raise Unavailable(f"{self._server}: the management API at {self._base} answers {exc.code}") from exc
        except ValueError as exc:
            raise ConfigError(f"{self._base} is no management API of RabbitMQ; set management= in the URL") from exc
        except OSError as exc:
            raise Unavailable(
                f"{self._server}: the management API at {self._base} does not answer ({exc}), and AMQP cannot list what "
                "exists; enable the plugin rabbitmq_management, or say where it is with management= in the URL"
            ) from exc
