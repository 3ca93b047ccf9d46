"""FaultProxy: what each fault looks like to a client of a plain echo server."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mqkit.errors import Closed
from mqkit.testing.chaos import FaultProxy

SOON = 0.15  # seconds in which an answer over loopback would have come many times over


class Echo(socketserver.ThreadingTCPServer):
    """Answers each chunk with itself, and keeps what it heard."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, prefix: bytes = b"") -> None:
        self.prefix = prefix
        self.heard = bytearray()
        self.ends: list[str] = []
        super().__init__(("127.0.0.1", 0), EchoHandler)
        self.port: int = self.server_address[1]
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class EchoHandler(socketserver.BaseRequestHandler):
    server: Echo

    def handle(self) -> None:
        try:
            while chunk := self.request.recv(65536):
                self.server.heard += chunk
                self.request.sendall(self.server.prefix + chunk)
        except OSError:
            self.server.ends.append("reset")
        else:
            self.server.ends.append("closed")


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as server:
        yield server
        server.shutdown()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", echo.port) as proxy:
        yield proxy


def connect(proxy: FaultProxy, timeout: float = 5.0) -> socket.socket:
    return socket.create_connection((proxy.host, proxy.port), timeout)


def ask(client: socket.socket, question: bytes) -> bytes:
    client.sendall(question)
    return hear(client, len(question))


def hear(client: socket.socket, size: int) -> bytes:
    answer = b""
    while len(answer) < size and (chunk := client.recv(size - len(answer))):
        answer += chunk
    return answer


def assert_silent(client: socket.socket) -> None:
    client.settimeout(SOON)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(5.0)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5.0
    while not condition():
        assert time.monotonic() < deadline, "not within 5 s"
        time.sleep(0.005)


def test_bytes_pass_unchanged_and_are_counted(echo: Echo, proxy: FaultProxy) -> None:
    question = bytes(range(256)) * 4096
    with connect(proxy) as client:
        sender = threading.Thread(target=client.sendall, args=(question,))
        sender.start()
        answer = hear(client, len(question))
        sender.join(5.0)

    assert answer == question == bytes(echo.heard)
    assert (proxy.accepted, proxy.request_bytes, proxy.reply_bytes) == (1, len(question), len(question))
    wait_until(lambda: proxy.open_connections == 0)
    assert echo.ends == ["closed"]


def test_the_end_of_what_a_client_sends_reaches_the_server_and_its_answer_the_client(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)

        assert hear(client, 100) == b"last words"


def test_reset_ends_both_sides_with_an_error(echo: Echo, proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        ask(client, b"1")

        proxy.reset()

        with pytest.raises(ConnectionResetError):
            client.recv(1)
    wait_until(lambda: echo.ends == ["reset"])
    with connect(proxy) as client:
        assert ask(client, b"2") == b"2"


def test_close_ends_both_sides_in_good_order(echo: Echo, proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        ask(client, b"1")

        proxy.close_connections()

        assert client.recv(1) == b""
    wait_until(lambda: echo.ends == ["closed"])


def test_a_frozen_connection_stays_open_and_goes_on_where_it_stopped(echo: Echo, proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        ask(client, b"1")

        proxy.freeze()
        client.sendall(b"2")
        assert_silent(client)
        assert echo.heard == b"1"
        with connect(proxy) as another:
            another.sendall(b"x")
            assert_silent(another)
        proxy.thaw()

        assert hear(client, 1) == b"2"


def test_a_frozen_connection_can_be_reset(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        proxy.freeze()
        client.sendall(b"1")

        proxy.reset()

        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_with_frozen_replies_the_server_hears_and_the_client_does_not(echo: Echo, proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        proxy.freeze_replies()

        client.sendall(b"1")

        wait_until(lambda: echo.heard == b"1")
        assert_silent(client)
        proxy.thaw()
        assert hear(client, 1) == b"1"


def test_replies_that_are_frozen_when_the_connection_is_reset_are_lost(echo: Echo, proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        proxy.freeze_replies()
        client.sendall(b"1")
        wait_until(lambda: echo.heard == b"1")

        proxy.reset()
        proxy.thaw()

        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_refusing_proxy_keeps_its_address_and_its_open_connections(proxy: FaultProxy) -> None:
    address = (proxy.host, proxy.port)
    with connect(proxy) as client:
        ask(client, b"1")

        proxy.refuse()

        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        with pytest.raises(OSError, match="in use"), socket.socket() as somebody:
            somebody.bind(address)
        assert ask(client, b"2") == b"2"
        proxy.accept()
        with connect(proxy) as another:
            assert ask(another, b"3") == b"3"
    assert (proxy.host, proxy.port) == address


def test_the_next_connections_are_reset_and_the_one_after_is_served(proxy: FaultProxy) -> None:
    proxy.reset_next(2)

    for _ in range(2):
        with pytest.raises(ConnectionError), connect(proxy) as client:
            ask(client, b"1")
            raise ConnectionError("closed instead of reset")
    with connect(proxy) as client:
        assert ask(client, b"2") == b"2"
    assert proxy.accepted == 3


def test_a_delay_holds_each_chunk_back_both_ways(proxy: FaultProxy) -> None:
    with connect(proxy, timeout=60.0) as client:
        ask(client, b"1")
        proxy.slow(delay=3.0)

        began = time.monotonic()
        ask(client, b"2")
        slow = time.monotonic() - began
        proxy.slow()
        began = time.monotonic()
        ask(client, b"3")
        quick = time.monotonic() - began

    assert slow >= 6.0 > quick


def test_a_rate_is_kept(echo: Echo, proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        proxy.slow(rate=20_000)

        began = time.monotonic()
        ask(client, bytes(10_000))
        took = time.monotonic() - began

    assert 0.5 <= took < 5.0


@pytest.mark.parametrize("size", [0, 3])
def test_a_request_is_torn_after_as_many_bytes_as_were_said(echo: Echo, proxy: FaultProxy, size: int) -> None:
    with connect(proxy) as client:
        proxy.cut_after(size)

        client.sendall(b"question")

        with pytest.raises(ConnectionResetError):
            while client.recv(1):
                pass
    assert b"question"[: len(echo.heard)] == echo.heard
    assert proxy.request_bytes == size
    with connect(proxy) as client:  # once
        assert ask(client, b"whole") == b"whole"


def test_a_reply_is_torn_after_as_many_bytes_as_were_said(echo: Echo, proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        proxy.cut_replies_after(3)

        client.sendall(b"question")

        with pytest.raises(ConnectionResetError):
            while client.recv(1):
                pass
    assert echo.heard == b"question"
    assert proxy.reply_bytes == 3


def test_new_connections_go_to_the_new_target(proxy: FaultProxy) -> None:
    with Echo(prefix=b"new:") as other, connect(proxy) as old:
        ask(old, b"1")

        proxy.retarget("127.0.0.1", other.port)

        with connect(proxy) as client:
            client.sendall(b"2")
            assert hear(client, 5) == b"new:2"
        assert ask(old, b"3") == b"3"
        other.shutdown()


def test_a_target_that_is_away_looks_like_a_reset_and_may_come_back(proxy: FaultProxy, echo: Echo) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        proxy.retarget("127.0.0.1", nobody.getsockname()[1])
        with pytest.raises(ConnectionError), connect(proxy) as client:
            ask(client, b"1")
            raise ConnectionError("closed instead of reset")

    proxy.retarget("127.0.0.1", echo.port)

    with connect(proxy) as client:
        assert ask(client, b"2") == b"2"


def test_a_url_leads_through_the_proxy(proxy: FaultProxy) -> None:
    here = f"127.0.0.1:{proxy.port}"

    assert proxy.through("amqp://me:p%40ss@host:5672/vhost?a=1") == f"amqp://me:p%40ss@{here}/vhost?a=1"
    assert proxy.through("redis://host/0") == f"redis://{here}/0"


def test_a_closed_proxy_frees_its_port_ends_its_thread_and_says_so() -> None:
    with Echo() as echo:
        proxy = FaultProxy("127.0.0.1", echo.port)
        client = connect(proxy)
        ask(client, b"1")

        proxy.close()
        proxy.close()

        with client, pytest.raises(ConnectionResetError):
            client.recv(1)
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        with pytest.raises(Closed, match=str(proxy.port)):
            proxy.freeze()
        assert not [thread for thread in threading.enumerate() if thread.name == "mqkit-fault-proxy"]
        echo.shutdown()
