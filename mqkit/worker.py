"""Worker: consumes what a bus has registered, until it is stopped. `run` does it until a signal comes."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING, Any

from mqkit._call import Call, compile_call, is_async
from mqkit._consume import ConsumePump
from mqkit._crew import Crew, LoopTasks, Threads
from mqkit._provide import Step, worker_steps
from mqkit._settings import Settings, needs
from mqkit._stopping import stopping
from mqkit._topology import check_start, source_declaration
from mqkit._trace import Attempt
from mqkit.backends.base import Backend
from mqkit.destinations import Destination
from mqkit.errors import BlockingCall, ConfigError, TimedOut, Unavailable
from mqkit.handlers import Provider, Registration, same_source_twice
from mqkit.message import Delivery, current
from mqkit.patterns.retry import Retry

if TYPE_CHECKING:
    from mqkit.bus import Bus

log = logging.getLogger("mqkit")

LONGEST = 86_400.0  # seconds of grace, a day
START = 10.0  # seconds a worker waits for its sources to open
LAST = 10.0  # seconds asynchronous providers may take to end
EXTRA = 2.0  # seconds beyond grace for settling and closing


class Worker:
    """
    Got by `with bus.worker() as worker`.

    Attributes:
        consumers: One pump per source; their `counts` say what became of deliveries.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        only: Sequence[str | Destination[Any]] | None,
        grace: float,
        loop: asyncio.AbstractEventLoop | None,
        observe: Callable[[Attempt], None] | None = None,
    ) -> None:
        if isinstance(grace, bool) or not isinstance(grace, (int, float)) or not 0 <= grace <= LONGEST:
            raise ConfigError(f"grace={grace!r}: a number of seconds from 0 to {LONGEST:g}")
        self._bus = bus
        self._link = bus.link
        self._only = only
        self._grace = grace
        self._loop = loop
        self._own_loop: _LoopThread | None = None
        self._observe = observe
        self._stack = ExitStack()
        self._astack = AsyncExitStack()
        self._lock = threading.Lock()
        self._stopping = False
        self._ended = threading.Event()
        self._crews: list[tuple[ConsumePump, Crew]] = []
        self.consumers: list[ConsumePump] = []
        self.starting = True  # not every source is open yet

    def start(self) -> None:
        """
        Raises:
            ConfigError: No handler is registered, or one cannot be called.
            CapabilityMissing: The backend cannot do what a handler asks for.
            Unavailable, Denied, TopologyMismatch: A source cannot be opened.
        """
        entries = self._chosen(self._bus._check())
        self._link.join(self)
        try:
            self._link.publish_pump.wait_connected(START)
            self._build(entries, self._loop_for([registration for registration, *_ in entries]))
            for consumer, crew in self._crews:
                consumer.start(crew)
            self._wait_running()
            self.starting = False
        except BaseException:
            self.stop(grace=0.0)
            raise

    def stop(self, *, grace: float | None = None) -> None:
        """
        Stop fetching, let handlers finish within grace, settle, leave worker providers. Safe to repeat.

        Raises:
            BlockingCall: A handler of this worker calls, for which it would wait.
            TimedOut: An asynchronous provider did not end; or whatever a provider raised at its end.
        """
        delivery = current.get()
        if delivery is not None and self.handles(delivery):
            raise BlockingCall(
                "stopping a worker in one of its handlers would wait for that handler; let it return first"
            )
        if self._link.state == "forked":
            return  # threads, deliveries and provided values are the parent's
        grace = self._grace if grace is None else grace
        with self._lock:
            second, self._stopping = self._stopping, True
        if second:
            self._ended.wait(grace + EXTRA)
            return
        try:
            self._stop_consumers(grace)
        finally:
            self._link.leave(self)
            try:
                if self._own_loop is not None:
                    self._own_loop.close(self._astack.aclose())
            finally:
                self._ended.set()
                self._stack.close()

    def end(self, timeout: float) -> None:
        """`stop` by the link, whose time may be shorter than the grace."""
        self.stop(grace=min(self._grace, max(0.0, timeout - EXTRA)))

    def handles(self, delivery: Delivery[Any]) -> bool:
        """Is it in the hands of one of its handlers?"""
        return any(delivery._holder is consumer for consumer in self.consumers)

    def _stop_consumers(self, grace: float) -> None:
        deadline = time.monotonic() + grace + EXTRA
        for consumer in self.consumers:
            consumer.stop(grace)
        for consumer in self.consumers:
            if not consumer.join(max(0.1, deadline - time.monotonic())):
                log.error("consumer.does_not_end", extra={"source": consumer.settings.name})

    async def astop(self) -> None:
        """`stop` for a worker on the caller's loop: the loop goes on, so that tasks can finish."""
        await asyncio.get_running_loop().run_in_executor(None, self.stop)
        await self._astack.aclose()

    @property
    def busy(self) -> bool:
        return any(consumer.busy for consumer in self.consumers)

    # -- starting --------------------------------------------------------------------------------------------------

    def _chosen(self, entries: list[Any]) -> list[Any]:
        if not entries:
            raise ConfigError(
                f"{self._bus!r} has no handlers to run. If they are registered in the file you started, it was run as "
                "__main__ and imported a second time under its own name: start it with `mqkit run module:bus`, or move the "
                "bus to a module of its own"
            )
        if self._only is not None:
            if isinstance(self._only, str) or not self._only:
                raise ConfigError(f"only={self._only!r}: a list of destinations or names, one at least")
            wanted = {one if isinstance(one, str) else one.name for one in self._only}
            chosen = [entry for entry in entries if {entry[0].name, entry[0].source.name} & wanted]
            known = {entry[0].name for entry in entries} | {entry[0].source.name for entry in entries}
            if missing := wanted - known:
                raise ConfigError(f"only={sorted(missing)} names no registered source (registered: {sorted(known)})")
            entries = chosen
        if twice := same_source_twice(entry[0] for entry in entries):
            raise ConfigError(f"{twice} has two handlers on {self._bus!r}; they would take each other's messages")
        working = {
            consumer.settings.name for user in self._link.users for consumer in user.consumers if user is not self
        }
        if busy := working & {entry[0].name for entry in entries}:
            raise ConfigError(
                f"{sorted(busy)[0]} is consumed with {self._bus!r} already; stop that first, or use another bus"
            )
        return entries

    def _loop_for(self, registrations: list[Registration]) -> asyncio.AbstractEventLoop | None:
        if self._loop is not None or not any(is_async(registration.handler) for registration in registrations):
            return self._loop
        self._own_loop = _LoopThread(self._bus.name)
        return self._own_loop.loop

    def _build(self, entries: list[Any], loop: asyncio.AbstractEventLoop | None) -> None:
        link = self._link
        values: dict[int, Any] = {}
        for registration, providers, middlewares, settings in entries:
            given = self._worker_values(providers, values, loop)
            call = compile_call(registration, providers, middlewares, given)
            pump = ConsumePump(settings, link.backend, link.topology, link, self._observe)
            self.consumers.append(pump)
            self._crews.append((pump, self._crew(call, pump, registration, settings, loop)))

    def _crew(
        self,
        call: Call,
        pump: ConsumePump,
        registration: Registration,
        settings: Settings,
        loop: asyncio.AbstractEventLoop | None,
    ) -> Crew:
        timeout = settings.timeout
        if call.run is not None:
            return Threads(
                call, pump.begin, pump.conclude, size=settings.concurrency, timeout=timeout, name=settings.name
            )
        assert loop is not None
        return LoopTasks(
            call, pump.begin, pump.conclude, size=settings.concurrency, timeout=timeout, name=settings.name, loop=loop
        )

    def _worker_values(
        self, providers: dict[Any, Provider], made: dict[int, Any], loop: asyncio.AbstractEventLoop | None
    ) -> dict[Any, Any]:
        """By type: what is always there, and the values of `per="worker"` providers, each entered once per worker."""
        values = _always(self._bus)
        for step in worker_steps(providers, values, asynchronous=loop is not None):
            provider = id(providers[step.type])
            if provider not in made:
                made[provider] = self._enter(step, values, loop)
            values[step.type] = made[provider]
        return values

    def _enter(self, step: Step, values: dict[Any, Any], loop: asyncio.AbstractEventLoop | None) -> Any:
        if loop is None:
            return step.enter(values, self._stack)
        return asyncio.run_coroutine_threadsafe(step.aenter(values, self._astack), loop).result(START)

    def _wait_running(self) -> None:
        deadline = time.monotonic() + START
        for consumer in self.consumers:
            while not consumer.running.wait(0.02):
                if consumer.failed is not None:
                    raise consumer.failed
                if time.monotonic() > deadline:
                    raise Unavailable(f"{consumer.settings.name} did not open within {START:g} s: {consumer.state}")


def settings_of(bus: Bus, registration: Registration, backend: Backend, schemes: Sequence[str]) -> Settings:
    """A registration with defaults and per-environment settings filled in, checked against the backend."""
    source = registration.source
    overrides = bus._overrides(registration)
    bus.link.note(source)
    declaration = source_declaration(
        source, registration.group, backend.capabilities.name, order=registration.order, start=registration.start
    )
    retry = overrides.apply_retry(registration.retry or Retry())
    settings = Settings(
        name=registration.name,
        destination=source,
        group=registration.group,
        declaration=declaration,
        retry=retry,
        promise=registration.promise,
        concurrency=overrides.concurrency or registration.concurrency,
        timeout=overrides.timeout or registration.timeout,
        window=None,
        batch=registration.batch,
        where=registration.where,
        manual=registration.settle == "manual",
    )
    needs(settings, backend.capabilities, schemes)
    check_start(source, declaration, backend.capabilities)
    if source.declare:
        bus.link.topology.note_source(declaration)
    return settings


def _always(bus: Bus) -> dict[Any, Any]:
    """What handlers may ask for without a provider."""
    return {type(bus): bus, type(bus.aio): bus.aio}


class _LoopThread:
    """The event loop of `async def` handlers when nobody else brings one."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"mqkit-loop-{name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Run one more coroutine, then end the loop whatever became of it. Raises `TimedOut`, or what it raised."""
        future = asyncio.run_coroutine_threadsafe(last, self.loop)
        try:
            future.result(LAST)
        except TimeoutError as exc:
            if future.done():
                raise  # it is the coroutine's own
            raise TimedOut(f"asynchronous providers did not end within {LAST:g} s") from exc
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(5.0)
            if not self._thread.is_alive():
                self.loop.run_until_complete(self.loop.shutdown_asyncgens())
                self.loop.close()


def run(*buses: Bus, only: Sequence[str | Destination[Any]] | None = None, grace: float = 30.0) -> None:
    """
    Consume with several buses until SIGTERM or SIGINT, then stop gracefully and close them. Main thread only.

    A second signal ends the process at once.
    """
    if not buses:
        raise ConfigError("run() needs a bus")
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError(
            "run() installs signal handlers and belongs to the main thread; use `with bus.worker():` elsewhere"
        )
    for bus in buses:
        bus.blocking("run", "use `async with bus.aio.worker()` there, or start the process with `mqkit run`")
    workers = [Worker(bus, only=only, grace=grace, loop=None) for bus in buses]
    with stopping() as stop, ExitStack() as ends:
        for bus in buses:
            ends.callback(bus.close)
        ends.callback(_stop_all, workers)
        for worker in workers:
            worker.start()
        while not stop.wait(0.5):  # a bounded wait: signals reach a waiting main thread on every platform
            pass


def _stop_all(workers: Sequence[Worker]) -> None:
    """Together, so that grace counts once and not per bus. Raises the first thing that went wrong."""
    with ThreadPoolExecutor(len(workers), "mqkit-stop") as pool:
        ends = [pool.submit(worker.stop) for worker in workers]
    for end in ends:
        end.result()
