"""Publishing: a batch is one write, its replies are read as they come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mqkit.backends.base import Address, Outcome, Outgoing
from mqkit.backends.redis import scripts
from mqkit.backends.redis.clock import ServerClock
from mqkit.backends.redis.connection import Bell, Broken, Connection, run, wait
from mqkit.backends.redis.errors import ScriptMissing, publish_error
from mqkit.backends.redis.keys import Keys, field_of
from mqkit.backends.redis.source import PLAIN, TRIM, Registered
from mqkit.backends.redis.wire import copy_of, head_of, pack, pack_adding, to_live
from mqkit.errors import Lost, MqkitError, NotFound, PublishFailed, PublishUnknown

# One script call blocks the server for all, so it takes no more than this.
_MESSAGES_PER_CALL, _BYTES_PER_CALL = 100, 1 << 20


class _Expected(NamedTuple):
    """A reply that is due, and what it is about."""

    answer: Callable[[Any, Sequence[Outgoing]], list[Outcome]]
    messages: Sequence[Outgoing]
    since: float


class RedisPublisher:
    """See `base.Publisher`."""

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        clock: ServerClock,
        *,
        patience: float,
        replicas: int,
        declared: Mapping[Address, Registered],
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._clock = clock
        self._patience = patience
        self._replicas = replicas
        self._declared = declared  # destinations that remember ids, and topics that retain
        self._trim_at = 0.0
        self._bell = Bell()
        self._adding: dict[Address, Callable[[Outgoing, bytes], bytes]] = {}
        self._expected: deque[_Expected] = deque()
        self._outcomes: list[Outcome] = []
        self._unconfirmed: list[Outcome] = []  # answered, and waiting for replicas
        self._blocked: str | None = None

    @property
    def blocked(self) -> str | None:
        return self._blocked

    def submit(self, batch: Sequence[Outgoing]) -> None:
        now, since = self._clock.now(), time.monotonic()
        data: list[bytes] = []
        scripted: list[Outgoing] = []
        size = 0
        expected, declared = self._expected, self._declared
        for message in batch:
            address = message.address
            live = address.kind == "broadcast"
            if not live and (message.delay > 0 or (declared and declared.get(address, PLAIN).dedupe)):
                if len(scripted) >= _MESSAGES_PER_CALL or size + len(message.body) > _BYTES_PER_CALL:
                    data.append(self._scripted(scripted, since))
                    scripted, size = [], 0
                scripted.append(message)
                size += len(message.body)
                continue
            if scripted:
                data.append(self._scripted(scripted, since))
                scripted, size = [], 0
            if live:
                data.append(pack("PUBLISH", self._keys.of(address), to_live(message, now)))
            else:
                adding = self._adding.get(address)
                if adding is None:
                    adding = self._adding[address] = pack_adding(self._keys.landing(address))
                data.append(adding(message, head_of(message, now)))
            expected.append(_Expected(self._added, (message,), since))
        if scripted:
            data.append(self._scripted(scripted, since))
        if declared and since >= self._trim_at:
            self._trim_at = since + TRIM
            data += self._trimming(since)
        if self._replicas:
            data.append(pack("WAIT", self._replicas, round(self._patience * 500)))
            expected.append(_Expected(self._replicated, (), since))
        self._send(b"".join(data))

    def collect(self, timeout: float) -> Sequence[Outcome]:
        self._read()
        if not self._outcomes and not self._bell.answered():
            wait(self._bell, self._connection, timeout)
            self._bell.answered()
            self._read()
        outcomes, self._outcomes = self._outcomes, []
        if not outcomes:
            if self._expected and time.monotonic() - self._expected[0].since > self._patience:
                raise Lost(f"Redis server has not answered publishes for {self._patience:g} s")
            if self._connection.elsewhere:
                raise Lost("Redis server does not take writes for these keys any more; looking for the one that does")
        return outcomes

    def wake(self) -> None:
        self._bell.ring()

    def abandon(self) -> Sequence[Outcome]:
        outcomes = [*self._outcomes]
        unanswered = [message for expected in self._expected for message in expected.messages]
        unanswered += [message for message, _ in self._unconfirmed]
        for message in unanswered:
            error = PublishUnknown(
                f"the connection to Redis broke before message {message.id} was confirmed; publish it again with the same id"
            )
            outcomes.append((message.token, error))
        self._outcomes, self._unconfirmed = [], []
        self._expected.clear()
        return outcomes

    def close(self) -> None:
        self._connection.close()
        self._bell.close()

    def _send(self, data: bytes) -> None:
        try:
            self._connection.send(data)
        except Broken:
            return  # `collect` says so, when what was answered before has been read

    def _scripted(self, messages: list[Outgoing], since: float) -> bytes:
        arguments: list[Any] = []
        now = self._clock.now()
        for message in messages:
            arguments += copy_of(message, self._keys, now, self._declared.get(message.address, PLAIN).dedupe)
        self._expected.append(_Expected(self._scripts_answer, messages, since))
        return run(scripts.PUBLISH, [self._keys.owners], arguments)

    def _trimming(self, since: float) -> Iterator[bytes]:
        """Consumers do this too, if there are any."""
        for address, options in tuple(self._declared.items()):
            if options.retain:
                self._expected.append(_Expected(self._trimmed, (), since))
                yield run(scripts.TRIM, [self._keys.of(address)], [round(options.retain * 1000)])

    # -- replies -------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        expected, connection = self._expected, self._connection
        while expected and connection.readable():
            reply = connection.reply()
            answer, messages, _ = expected[0]
            outcomes = answer(reply, messages)
            expected.popleft()  # now: what an answer fails with must not take its messages along
            if self._replicas and answer != self._topic_known:
                by_token = {id(message.token): message for message in messages}
                self._unconfirmed += [(by_token[id(token)], error) for token, error in outcomes]
            else:
                self._outcomes += outcomes
        if not expected:
            self._unexpected()

    def _unexpected(self) -> None:
        """Nothing is due: what can be read then is the end of the connection."""
        if self._connection.readable():
            raise Broken("Redis server closed the connection")

    def _added(self, reply: Any, messages: Sequence[Outgoing]) -> list[Outcome]:
        message = messages[0]
        if reply is None:
            return self._missing(message)
        if isinstance(reply, MqkitError):
            return [(message.token, self._refused(reply))]
        self._blocked = None
        return [(message.token, None)]

    def _missing(self, message: Outgoing) -> list[Outcome]:
        address = message.address
        if address.kind == "topic" and not address.group:
            # A topic without groups has no stream. It takes the message, which reaches nobody.
            self._expected.append(_Expected(self._topic_known, (message,), time.monotonic()))
            self._send(pack("HEXISTS", self._keys.registry, field_of(address)))
            return []
        return [(message.token, NotFound(f"{address} does not exist on this Redis server; declare it"))]

    def _topic_known(self, reply: Any, messages: Sequence[Outgoing]) -> list[Outcome]:
        message = messages[0]
        if isinstance(reply, MqkitError):
            return [(message.token, self._refused(reply))]
        if reply:
            return [(message.token, None)]
        return [(message.token, NotFound(f"{message.address} does not exist on this Redis server; declare it"))]

    def _scripts_answer(self, reply: Any, messages: Sequence[Outgoing]) -> list[Outcome]:
        if isinstance(reply, ScriptMissing):
            # Not waited for: what comes next answers commands that are under way already.
            now = time.monotonic()
            self._expected.append(_Expected(self._script_loaded, (), now))
            self._send(pack("SCRIPT", "LOAD", scripts.PUBLISH.text) + self._scripted(list(messages), now))
            return []
        if isinstance(reply, MqkitError):
            error = self._refused(reply)
            return [(message.token, error) for message in messages]
        self._blocked = None
        outcomes: list[Outcome] = []
        for message, said in zip(messages, reply, strict=True):
            if said == b"ok":
                outcomes.append((message.token, None))
            elif said.startswith(b"NOSTREAM"):
                missing = NotFound(f"{message.address} does not exist on this Redis server; declare it")
                outcomes.append((message.token, missing))
            else:
                outcomes.append((message.token, PublishFailed(f"Redis refuses message {message.id}: {said.decode()}")))
        return outcomes

    def _trimmed(self, reply: Any, messages: Sequence[Outgoing]) -> list[Outcome]:
        """Whatever is wrong, publishes meet it too."""
        del messages
        if isinstance(reply, ScriptMissing):
            self._expected.append(_Expected(self._script_loaded, (), time.monotonic()))
            self._send(pack("SCRIPT", "LOAD", scripts.TRIM.text))
        return []

    def _script_loaded(self, reply: Any, messages: Sequence[Outgoing]) -> list[Outcome]:
        """Raises why it was not, or what is run next would be missing again, without end."""
        del messages
        if isinstance(reply, MqkitError):
            raise reply
        return []

    def _replicated(self, reply: Any, messages: Sequence[Outgoing]) -> list[Outcome]:
        del messages
        waiting, self._unconfirmed = self._unconfirmed, []
        for message, error in waiting:
            if error is None and (isinstance(reply, MqkitError) or reply < self._replicas):
                reached = f"{reply} of {self._replicas} replicas" if isinstance(reply, int) else str(reply)
                error = PublishUnknown(
                    f"message {message.id} is stored on the primary and was confirmed by {reached}; "
                    "publish it again with the same id"
                )
            self._outcomes.append((message.token, error))
        return []

    def _refused(self, error: MqkitError) -> MqkitError:
        if error.retryable:
            self._blocked = str(error)
        return publish_error(error)
