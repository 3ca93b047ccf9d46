"""A broker in a container, through testcontainers."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mqkit.testing.brokers.broker import Broker
from mqkit.testing.brokers.errors import BrokerAbsent, BrokerFailed
from mqkit.testing.brokers.kinds import Kind
from mqkit.testing.brokers.process import free_ports
from mqkit.testing.brokers.watchdog import Watchdog

if TYPE_CHECKING:
    import docker
    from testcontainers.core.container import DockerContainer

OWNER = "mqkit.testing.owner"  # label: who started a container, see `owner`
POLL = 0.05  # seconds between two looks at whether it is ready
PING = 10  # seconds the daemon may take to say that it is there
CALL = 60  # seconds one call of the daemon may take
PULL = 600.0  # seconds an image may take to arrive
LOOPBACK = "127.0.0.1"
DAEMON = "unix:///var/run/docker.sock"

# What runs when this process is gone without having removed its container.
_REMOVE = "import docker, sys; docker.from_env().api.remove_container(sys.argv[1], force=True, v=True)"
_settings = threading.Lock()  # testcontainers keeps its settings in one object of the process


class BrokerContainer:
    """
    One broker of a kind in a container, started by `BrokerContainer(kind, image)`.

    It is removed by `close`, by a watchdog if this process dies, and at the latest by the next run that starts one.

    Raises:
        BrokerAbsent: No testcontainers, no daemon, or no image.
        BrokerFailed: It ended, or did not answer within `kind.start_timeout`; the message ends with its log.
    """

    def __init__(self, kind: Kind, image: str) -> None:
        began = time.monotonic()
        self._kind = kind
        with _imported(kind) as client:
            sweep(client)
            full_name = _have_image(client, image, kind)
            self._here = _daemon_is_here(client)
        self._container = self._make(image)
        self._watchdog: Watchdog | None = None
        self._closed = False
        try:
            self._start()
            url, management_url = self._wait(began + kind.start_timeout)
        except BaseException:
            self.close()
            raise
        self.broker = Broker(
            kind=kind.name,
            url=url,
            management_url=management_url,
            provider=f"container {full_name}",
            seconds=time.monotonic() - began,
        )

    def log_tail(self, lines: int = 30) -> str:
        log: bytes = self._container.get_wrapped_container().logs(tail=lines)
        return log.decode(errors="replace").rstrip("\n")

    def close(self) -> None:
        import docker.errors

        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(docker.errors.NotFound):  # somebody was quicker
            self._container.stop()
        if self._watchdog is not None:
            self._watchdog.dismiss()

    def _make(self, image: str) -> DockerContainer:
        from testcontainers.core.container import DockerContainer

        container = DockerContainer(image, docker_client_kw={"timeout": CALL})
        container.with_kwargs(labels={OWNER: owner()})
        for name, value in self._kind.environment.items():
            container.with_env(name, value)
        for path, content in self._kind.files.items():
            container.with_copy_into_container(content, path)
        for port in (self._kind.port, self._kind.management_port):
            if port is not None:
                # A free port, on loopback only where that is reachable. docker-py takes (host,) and testcontainers
                # hands it on, though its annotation knows no such form.
                container.ports[f"{port}/tcp"] = (LOOPBACK,) if self._here else None  # type: ignore[assignment]
        if any("{port}" in value for value in self._kind.environment.values()):
            self._tell_address(container)
        return container

    def _tell_address(self, container: DockerContainer) -> None:
        """For a broker that has to know where clients will find it: that is chosen here, and not by the daemon."""
        from testcontainers.core.config import ConnectionMode

        client = container.get_docker_client()
        if not self._here and client.get_connection_mode() is not ConnectionMode.docker_host:
            raise BrokerAbsent(
                f"no container: {self._kind.name} has to be told its address before it starts, and that of a container "
                "beside the one we are in is known only afterwards; set TESTCONTAINERS_CONNECTION_MODE=docker_host"
            )
        host = LOOPBACK if self._here else client.host()
        (port,) = free_ports(1)
        bound = (LOOPBACK, port) if self._here else port
        container.ports[f"{self._kind.port}/tcp"] = bound  # type: ignore[assignment]  # as above
        for name, value in self._kind.environment.items():
            container.with_env(name, value.format(host=host, port=port))

    def _start(self) -> None:
        from testcontainers.core.config import testcontainers_config

        # Ryuk would have to be pulled, follows one process of many, and does what our watchdog and labels do.
        with _settings:
            before = testcontainers_config.ryuk_disabled
            testcontainers_config.ryuk_disabled = True
            try:
                self._container.start()
            except Exception as exc:
                raise BrokerFailed(f"{self._kind.name}: docker does not start {self._container.image}: {exc}") from exc
            finally:
                testcontainers_config.ryuk_disabled = before
        self._watchdog = Watchdog([sys.executable, "-c", _REMOVE, self._container.get_container_id()])

    def _wait(self, deadline: float) -> tuple[str, str | None]:
        """Until it answers; its URLs."""
        while not (found := self._look()):
            if time.monotonic() > deadline:
                within = f"{self._kind.start_timeout:g} s"
                raise BrokerFailed(
                    f"{self._kind.name} in {self._container.image} did not answer within {within}\n{self._report()}"
                )
            time.sleep(POLL)
        return found

    def _look(self) -> tuple[str, str | None] | None:
        container = self._container.get_wrapped_container()
        container.reload()
        if container.status in {"exited", "dead"}:
            raise BrokerFailed(f"{self._kind.name} in {self._container.image} ended while it started\n{self._report()}")
        if container.status != "running":
            return None
        kind, host = self._kind, LOOPBACK if self._here else self._container.get_container_host_ip()
        port = self._port(kind.port)
        if not kind.answers(host, port):
            return None
        url = kind.url.format(host=host, port=port)
        if kind.management_port is None or kind.management_answers is None:
            return url, None
        management_port = self._port(kind.management_port)
        if not kind.management_answers(host, management_port):
            return None
        return url, f"http://guest:guest@{host}:{management_port}"

    def _port(self, inside: int) -> int:
        if not self._here:
            return int(self._container.get_exposed_port(inside))
        return int(self._container.get_docker_client().port(self._container.get_container_id(), inside))

    def _report(self) -> str:
        return f"its log ends with:\n{self.log_tail(100) or '(nothing)'}"


# -- who a container belongs to ----------------------------------------------------------------------------------------


def owner() -> str:
    """This process, so that no other one, here or elsewhere, at this or another time, is taken for it."""
    return f"{socket.gethostname()}/{os.getpid()}/{_birth(os.getpid())}"


def abandoned(label: str) -> bool:
    """Whether the owner was on this machine and is gone; what others own is left alone."""
    host, _, process = label.partition("/")
    pid, _, birth = process.partition("/")
    return host == socket.gethostname() and pid.isdigit() and (_birth(int(pid)) or "gone") != birth


def sweep(client: docker.DockerClient) -> None:
    """Remove the containers of runs that died together with their watchdog."""
    import docker.errors

    for container in client.containers.list(all=True, ignore_removed=True, filters={"label": OWNER}):
        if abandoned(container.labels.get(OWNER, "")):
            with contextlib.suppress(docker.errors.APIError):  # another run may sweep at the same moment
                container.remove(force=True, v=True)


def _birth(pid: int) -> str:
    """When a process began, in clock ticks since boot; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""


# -- the daemon and its images -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _imported(kind: Kind) -> Iterator[docker.DockerClient]:
    """A client of the daemon, once it has answered."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a suite that makes warnings errors must not fail on those of others
        try:
            import docker
            import docker.errors
            import testcontainers.core.container  # noqa: F401
        except ModuleNotFoundError as exc:
            raise BrokerAbsent(f"no container: {exc.name} is not installed (pip install 'mqkit[testing]')") from exc
    # Asked first, because docker-py leaves a socket open when there is nobody at the other end.
    host = urlsplit(os.environ.get("DOCKER_HOST") or DAEMON)
    if host.scheme == "unix" and not os.path.exists(host.path):
        raise BrokerAbsent(f"no container: docker does not answer ({host.path} does not exist)")
    try:
        client = docker.from_env(timeout=PING)
    except docker.errors.DockerException as exc:
        raise BrokerAbsent(f"no container: docker does not answer ({_first_line(exc)})") from exc
    try:
        client.ping()
        client.api.timeout = CALL
        yield client
    except (docker.errors.DockerException, OSError) as exc:
        raise BrokerAbsent(f"no container: docker does not answer ({_first_line(exc)})") from exc
    finally:
        client.close()


def _have_image(client: docker.DockerClient, image: str, kind: Kind) -> str:
    """The full name of an image that is here now."""
    import docker.errors
    from testcontainers.core.config import testcontainers_config

    name = testcontainers_config.hub_image_name_prefix + image
    try:
        client.images.get(name)
    except docker.errors.ImageNotFound:
        try:
            _pull(client, name)
        except (docker.errors.DockerException, OSError, TimeoutError) as exc:
            raise BrokerAbsent(
                f"no container: the image {name} is not here and cannot be pulled ({_first_line(exc)}); "
                f"{kind.image_variable} names another"
            ) from exc
    return name


def _pull(client: docker.DockerClient, name: str) -> None:
    import docker.errors

    deadline = time.monotonic() + PULL
    repository, _, tag = name.rpartition(":") if ":" in name.rpartition("/")[2] else (name, "", "latest")
    progress: Iterator[Mapping[str, Any]] = client.api.pull(repository, tag=tag, stream=True, decode=True)
    for event in progress:
        if "error" in event:
            raise docker.errors.DockerException(event["error"])
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {PULL:g} s")


def _daemon_is_here(client: docker.DockerClient) -> bool:
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.utils import inside_container

    if testcontainers_config.tc_host_override or testcontainers_config.connection_mode_override:
        return False  # somebody knows better
    return daemon_is_here(
        base_url=client.api.base_url,
        in_container=inside_container(),
        daemon=str(client.info().get("Name", "")),
        machine=socket.gethostname(),
    )


def daemon_is_here(*, base_url: str, in_container: bool, daemon: str, machine: str) -> bool:
    """
    Whether ports that the daemon binds on loopback are reachable from here.

    A socket of a daemon outside may have been handed into the container that we are in; its name differs then. A
    machine with `/.dockerenv` and a daemon of its own (a virtual machine made from an image) is no such case.
    """
    local = base_url.startswith(("http+docker://local", "http://localhost", "http://127.0.0.1"))
    return local and (not in_container or daemon == machine)


def _first_line(exc: BaseException) -> str:
    return (str(exc) or type(exc).__name__).splitlines()[0][:200]
