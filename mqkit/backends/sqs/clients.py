"""Clients of botocore, which are those of boto3, made when they are needed, and the one way to call them."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from botocore.config import Config
from botocore.exceptions import BotoCoreError
from botocore.loaders import Loader, create_loader
from botocore.session import Session

from mqkit.backends.sqs.direct import REQUEST_ID, Direct, Form, encode, forms, is_wrapped
from mqkit.backends.sqs.errors import RAISED, translate, without_credentials
from mqkit.backends.sqs.options import Endpoint, SqsOptions
from mqkit.errors import ConfigError, Lost

Reply = Mapping[str, Any]

CONNECT = 3.0  # seconds a connection may take to be made
_driver_logs = ("boto3", "botocore")


class Client:
    """
    One service, with connections of its own. Any thread.

    It tries each call once: a driver that repeats a call whose answer was lost stores its messages twice.
    """

    def __init__(self, native: Any, endpoint: Endpoint, direct: Mapping[str, Direct], credentials: Any) -> None:
        """
        Args:
            credentials: That may have to be renewed.
        """
        self._native = native
        self._endpoint = endpoint
        self._direct = direct
        self._credentials = credentials

    def call(self, operation: str, what: str, **arguments: Any) -> Reply:
        """
        Args:
            operation: As boto3 names it.
            what: Is tried, for the text of an error.

        Raises:
            Unavailable: It had no effect.
            Lost: Nobody knows whether it had.
            Denied, NotFound, ConfigError, ...: It was refused.
        """
        direct = None if is_wrapped() else self._direct.get(operation)
        if direct is None:
            call = functools.partial(getattr(self._native, operation), **arguments)
        else:
            call = functools.partial(direct, encode(arguments))
        if self._credentials is not None:  # else what fails there would be taken for an answer to the call
            _fetched(self._credentials.get_frozen_credentials, self._endpoint, what)
        try:
            reply: Reply = call()
        except RAISED as exc:
            raise translate(exc, self._endpoint, what) from exc
        # A page of a proxy is parsed into an answer that says nothing, which is not to be taken for a success.
        if REQUEST_ID not in reply.get("ResponseMetadata", {}).get("HTTPHeaders", {}):
            raise Lost(f"{self._endpoint} is not answered by SQS; is there a proxy in between? ({what})")
        return reply

    @property
    def endpoint(self) -> Endpoint:
        return self._endpoint

    def close(self) -> None:
        self._native.close()


def _fetched(fetch: Callable[[], Any], endpoint: Endpoint, what: str) -> Any:
    """
    What programs, files and services of the user's give for credentials, which may fail in any way; nothing was sent then.

    Raises:
        Unavailable, Denied, ConfigError: See `without_credentials`.
    """
    try:
        return fetch()
    except Exception as exc:
        raise without_credentials(exc, endpoint, what) from exc


@functools.cache
def _descriptions() -> Loader:
    """Of AWS's services, for all sessions: reading them takes a tenth of a second and never says anything else."""
    return create_loader()


class Clients:
    """Makes clients, from one session of each process: a forked one that used its parent's would mix up answers."""

    def __init__(self, endpoint: Endpoint, options: SqsOptions) -> None:
        self.endpoint = endpoint
        self._options = options
        self._lock = threading.Lock()
        self._session: Any = None
        self._forms: Mapping[str, Form] | None = None
        self._process = 0
        for name in _driver_logs:  # at DEBUG the driver logs bodies and session tokens
            log = logging.getLogger(name)
            if log.level == logging.NOTSET:
                log.setLevel(logging.WARNING)

    def make(self, service: str, *, connections: int, wait: float = 0.0, checked: bool = False) -> Client:
        """
        Args:
            connections: Calls at a time; a pool that is too small throws connections away.
            wait: Seconds the server may take on purpose, beyond its time-out.
            checked: Whether the driver looks at each argument, a seventh of what sending costs; for calls that carry what
                users wrote as AWS names it. All others are made of what was checked here.
        """
        config = Config(
            retries={"mode": "standard", "total_max_attempts": 1},
            connect_timeout=min(CONNECT, self._options.timeout),
            read_timeout=self._options.timeout + wait,
            max_pool_connections=connections,
            tcp_keepalive=True,
            parameter_validation=checked,
            # Proxies of the environment lead to AWS, not to a server that is named.
            proxies={} if self.endpoint.url else None,
        )
        with self._lock:
            if self._session is None or self._process != os.getpid():
                self._session, self._process = Session(), os.getpid()
                self._session.register_component("data_loader", _descriptions())
            credentials = self._found_credentials(service)
            native = self._native(service, config)
            direct: dict[str, Direct] = {}
            if service == "sqs" and not checked:
                if self._forms is None:
                    self._forms = forms(native)
                direct = {operation: Direct(native, operation, form) for operation, form in self._forms.items()}
        return Client(native, self.endpoint, direct, credentials)

    def _native(self, service: str, config: Config) -> Any:
        try:
            return self._session.create_client(service, config=config, **self.endpoint.arguments())
        except BotoCoreError as exc:
            raise translate(exc, self.endpoint, f"a client of {service}") from exc
        except ValueError as exc:
            problem = f"{exc}; see what the environment and AWS's files say of endpoint and region"
            raise ConfigError(f"{self.endpoint} cannot be asked: {problem}") from exc

    def _found_credentials(self, service: str) -> Any:
        """By AWS's own chain, and kept by the session; None where the URL has them, or there are none."""
        if self.endpoint.key is not None:
            return None
        return _fetched(self._session.get_credentials, self.endpoint, f"a client of {service}")

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._session = None
