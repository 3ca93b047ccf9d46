"""The consume pump: one thread that takes messages of one source, has them handled, and settles them."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from mqkit._chance import chance
from mqkit._crew import Crew
from mqkit._ending import Endings, Sender
from mqkit._gate import Gate
from mqkit._hand import Hand
from mqkit._ids import derived_id
from mqkit._reserve import Reserve
from mqkit._settings import Settings
from mqkit._topology import Topology
from mqkit._trace import Attempt, Tally
from mqkit._window import Window
from mqkit.backends.base import Backend, Done, Outgoing, Received, Receiver, Release, Settlement, Turn
from mqkit.destinations import Destination
from mqkit.errors import ConfigError, LeaseLost, Lost, MqkitError, Unavailable
from mqkit.message import Delivery, PublishOptions
from mqkit.verdicts import Reject

log = logging.getLogger("mqkit")

RESTART = (0.1, 10.0)  # first and longest wait before a failed loop starts again
QUIET = 10.0  # seconds for which a failure that goes on is not logged once more
COPIES = 1.5  # seconds a stop waits beyond its grace for copies that are with the broker


class ConsumePump:
    """
    Owns one `Receiver`.

    What is in hand belongs to the thread. Handlers append to `verdicts` and wake it at most once per turn.
    """

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        topology: Topology,
        sender: Sender,
        observe: Callable[[Attempt], None] | None,
    ) -> None:
        self.settings = settings
        self.destination = settings.destination
        self.group = settings.group
        self.explicit = settings.manual
        self.by_member = settings.batch is not None
        self.state = "starting"  # starting, running, failed: why, stopped
        self.failed: MqkitError | None = None  # why the source could not be opened, if for good
        self.running = threading.Event()
        self._backend = backend
        self._can = backend.capabilities
        self._topology = topology
        self._sender = sender
        self._crew: Crew | None = None
        self._receiver: Receiver | None = None
        self._clock: Callable[[], float] = time.time  # the receiver's, once there is one
        self._verdicts: deque[tuple[Delivery[Any], BaseException | None]] = deque()
        self._armed = False
        self._staging = threading.Lock()  # the order of what the threads of one handler stage
        self._stopping = threading.Event()
        self._deadline = float("inf")
        self._hungry = False
        self._early = settings.early
        self._window = Window(settings)
        self._tally = Tally(self.now, observe)
        self.counts = self._tally.counts
        self._gate = Gate(
            settings,
            self._can.lease,
            finish=self.finish,
            wake=self._wake,
            now=self.now,
            stopping=self._stopping,
        )
        self.begin = self._gate.begin  # on a worker, right before the handler
        self._hand = Hand(settings, self, self._gate.waiting, now=self.now)
        self._endings = Endings(
            settings,
            backend,
            topology,
            sender,
            self._tally,
            finish=self.finish,
            now=self.now,
            stopping=self._stopping,
        )
        self._thread = threading.Thread(target=self._run, name=f"mqkit-consume-{settings.name}", daemon=True)

    # -- the worker and the user -----------------------------------------------------------------------------------

    def start(self, crew: Crew) -> None:
        self._crew = crew
        self._hand.start = crew.start
        self._thread.start()

    def stop(self, grace: float) -> None:
        """Begin to stop; `join` waits."""
        self._deadline = time.monotonic() + grace
        self._stopping.set()
        self._wake()

    def join(self, timeout: float) -> bool:
        if self._thread.ident is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def busy(self) -> bool:
        """Is anything in hand, running or unsettled?"""
        return bool(self._hand.inflight or self._verdicts)

    @property
    def alive(self) -> bool:
        """False only when its thread has died, which nobody asked for."""
        return self._thread.ident is None or self._thread.is_alive() or self._stopping.is_set()

    @property
    def in_hand(self) -> int:
        return len(self._hand.inflight)

    @property
    def only_waits_for_its_batch(self) -> bool:
        """Is all it holds in a batch that is not full, so that only time can move it on?"""
        forming = self._hand.forming
        return forming is not None and 0 < len(forming.members) == self.in_hand and not self._verdicts

    def next_due(self) -> float | None:
        """When a forming batch is handed over for its age, by the backend's clock."""
        return self._hand.forming.due if self._hand.forming is not None else None

    def stuck(self) -> int:
        return self._crew.stuck() if self._crew is not None else 0

    def now(self) -> float:
        """The backend's clock."""
        return self._clock()

    def clock_moved(self) -> None:
        self._wake()

    def stage(
        self, delivery: Delivery[Any], to: Destination[Any], payload: Any, via: Any, options: PublishOptions
    ) -> Outgoing:
        sender: Sender = self._sender
        if via is not None:
            if self.settings.promise == "exactly_once":
                raise ConfigError('delivery.publish(via=...): another bus cannot be part of promise="exactly_once"')
            sender = via
        position = len(delivery._staged or ())
        message = sender.prepare(to, payload, options, id=self._derived_id(delivery, position), staged=True)
        with self._staging:
            if delivery._staged is None:
                delivery._staged = []
            if len(delivery._staged) != position and options.get("id") is None:  # another thread was faster
                message.id = self._derived_id(delivery, len(delivery._staged))
            delivery._staged.append((via, message))
        return message

    def _derived_id(self, delivery: Delivery[Any], position: int) -> str:
        return derived_id(f"{self.settings.name}\0{delivery.id}", self.group or "", position)

    def conclude(self, work: Any, outcome: BaseException | None) -> None:
        """On a worker, after the handler."""
        if not self.by_member and not self.explicit:
            work._settled = True
            self.finish(work, outcome)
            return
        for delivery in work if self.by_member else (work,):
            if delivery._settled or (self.explicit and outcome is None):
                continue  # its handler settles, or has
            delivery._settled = True
            self.finish(delivery, outcome)

    def finish(self, delivery: Delivery[Any], outcome: BaseException | None) -> None:
        """From any thread: what became of a delivery. None is success."""
        self._verdicts.append((delivery, outcome))
        if not self._armed:
            self._armed = True
            receiver = self._receiver
            if receiver is not None:
                receiver.wake()

    def _wake(self) -> None:
        receiver = self._receiver
        if receiver is not None:
            receiver.wake()

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        wait = RESTART[0]
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                receiver = self._open()
            except MqkitError as exc:
                self.state = f"failed: {exc}"
                self.failed = None if exc.retryable else exc
                log.warning("consumer.cannot_start", extra={"source": self.settings.name, "error": str(exc)})
            except Exception as exc:
                self.state = f"failed: {type(exc).__name__}: {exc}"
                log.exception("consumer.cannot_start", extra={"source": self.settings.name})
            else:
                try:
                    self._serve(receiver)
                except Unavailable as exc:  # lost, or it would not even flush
                    self.state = f"failed: {exc}"
                    log.warning("consumer.lost", extra={"source": self.settings.name, "error": str(exc)})
                except Exception as exc:  # never a silent dead loop: said in health(), and started again
                    self.state = f"failed: {type(exc).__name__}: {exc}"
                    log.exception("consumer.failed", extra={"source": self.settings.name})
                finally:
                    # Gone with all it handed out. Handlers that run finish, and their verdicts meet nobody.
                    self._hand.clear()
                    self._endings.clear()
                    self._receiver = None
                    self._close(receiver)
            if self._stopping.is_set():
                break
            if time.monotonic() - began > RESTART[1]:
                wait = RESTART[0]
            self._stopping.wait(wait * (0.5 + chance() / 2))
            wait = min(RESTART[1], wait * 2)
        self.state = "stopped"
        self.running.set()
        if self._crew is not None:
            self._crew.stop()

    def _close(self, receiver: Receiver) -> None:
        """It may be what has just failed."""
        try:
            receiver.close()
        except MqkitError:
            pass
        except Exception:
            log.exception("consumer.close_failed", extra={"source": self.settings.name})

    def _open(self) -> Receiver:
        # What this process knew to exist may be what the broker has just lost: ask again, every time.
        self._topology.forget([self.settings.declaration.address])
        self._topology.ensure(self._backend, [self.settings.declaration.address])
        receiver = self._backend.receiver(self.settings.declaration, self._window.most)
        self._receiver, self._clock = receiver, receiver.now
        self._gate.served_at = time.monotonic()
        self.state, self.failed = "running", None
        self.running.set()
        return receiver

    def _serve(self, receiver: Receiver) -> None:
        crew, hand, endings = self._crew, self._hand, self._endings
        assert crew is not None
        trouble, said = RESTART[0], -math.inf
        while True:
            self._armed = False
            # Read before draining: whoever settled and then stopped us must find it carried out.
            stopping = self._stopping.is_set()
            if endings.parked:
                endings.try_again()
            if settlements := self._drain():
                receiver.settle(settlements)
            if hand.isolation.suspects and not stopping:
                self._isolate(receiver)
            if stopping and self._stopped(receiver):
                return
            if hand.reserve is not None and hand.reserve.ready:
                self._settle_first(receiver, hand.reserve)
                self._hungry = crew.turn_end()
            room = 0 if stopping else self._room()
            asked = time.monotonic()
            try:
                turn = receiver.receive(room, self._patience())
            except Lost:
                raise
            except MqkitError as exc:
                if not exc.retryable:
                    raise
                self.state = f"failed: {exc}"
                if asked - said > QUIET:
                    said = asked
                    log.warning("consumer.unavailable", extra={"source": self.settings.name, "error": str(exc)})
                # What it holds it keeps only if it is heard of.
                longest = RESTART[1] if self._can.lease is None else min(RESTART[1], self._can.lease / 4)
                self._stopping.wait(min(trouble, longest))
                trouble = min(RESTART[1], trouble * 2)
                continue
            if trouble != RESTART[0] or self.state != "running":
                trouble, self.state = RESTART[0], "running"
            if turn.revoked or turn.refused:
                self._lose(receiver, turn)
            self._gate.served_at = asked  # not now: the process may have slept inside, after the backend was asked
            if hand.next:
                hand.start_next()
            if turn.deliveries:
                self._admit(receiver, turn.deliveries)
            if hand.forming is not None:
                hand.hand_over_batch()
            if hand.reserve is not None and hand.reserve.ready:
                continue  # to settle them
            self._hungry = crew.turn_end()

    def _room(self) -> int:
        """How many messages may be taken."""
        hand, size = self._hand, self._window.size
        if hand.isolation.suspects:
            return 0
        if hand.reserve is not None and hand.reserve.waiting > size // 4:
            return 0  # enough for the handlers; one by one as they end would be as much work as settling
        return max(0, size - len(hand.inflight))

    def _patience(self) -> float:
        """How long `receive` may block."""
        if self._verdicts or self._hand.next:
            return 0.0
        if self._hungry:
            return 0.002
        longest = 0.05 if self._stopping.is_set() else 1.0
        if self._can.lease is not None:
            longest = min(longest, self._can.lease / 4)
        if self._endings.parked:
            longest = min(longest, max(0.0, min(at for at, *_ in self._endings.parked) - time.monotonic()))
        due = self._hand.forming.due if self._hand.forming is not None else None
        return longest if due is None else max(0.0, min(longest, due - self.now()))

    # -- taking and settling ---------------------------------------------------------------------------------------

    def _admit(self, receiver: Receiver, deliveries: Sequence[Received]) -> None:
        self._hand.take(deliveries)

    def _settle_first(self, receiver: Receiver, reserve: Reserve) -> None:
        """At most once: settled, durably, right before the handler starts. What could not be settled is not handled."""
        hand = self._hand
        pieces = reserve.let_out(hand.holds)
        receiver.settle([Done(delivery._received) for members in pieces for delivery in members])
        turn = receiver.flush(5.0)
        self._lose(receiver, turn)
        for received, _ in turn.refused:
            hand.revoked(received)
        for members in pieces:
            if settled := [delivery for delivery in members if hand.holds(delivery)]:
                reserve.started(settled)
                hand.start_now(settled)

    def _drain(self) -> list[Settlement]:
        out: list[Settlement] = []
        hand = self._hand
        verdicts, inflight, waiting = self._verdicts, hand.inflight, self._gate.waiting
        early, observed = self._early, self._tally.observed
        reserve = hand.reserve
        alike = hand.lanes is None and not hand.isolation.suspects  # none waits for another
        finished = done = 0
        while verdicts:
            delivery, outcome = verdicts.popleft()
            received = delivery._received
            handle = received.handle
            if reserve is not None:
                reserve.ended(handle)
            if inflight.get(handle) is not delivery:
                self.counts.stale += 1
                continue
            finished += 1
            if outcome is None and delivery._staged is None and not early:
                out.append(Done(received))
                done += 1
                if observed:
                    self._tally.trace(delivery, "done", None)
            else:
                settled = self._endings.conclude(delivery, outcome)
                if settled is None:
                    continue  # copies are on their way elsewhere, it stays in hand
                out.extend(settled)
                waiting.pop(handle, None)
            del inflight[handle]
            if not alike:
                again = bool(out) and out[-1].__class__ is Release and out[-1].delivery is received
                back = hand.settled(delivery, again=again, stopping=self._stopping.is_set())
                out.extend(Release(follower._received) for follower in back)
        self.counts.done += done
        self._window.finished(finished)
        return out

    # -- losing, isolating, stopping -------------------------------------------------------------------------------

    def _lose(self, receiver: Receiver, turn: Turn) -> None:
        for received in turn.revoked:
            self._hand.revoked(received)
            self._endings.forget(received.handle)
        again: list[Settlement] = []
        for received, error in turn.refused:
            if isinstance(error, LeaseLost):
                self.counts.stale += 1
                continue
            if self._endings.accuse(received, error):
                self._verdicts.append((self._in_hand_again(received), error))
                continue
            # The backend would not take a copy, likely because its destination is gone: nothing happened, the original
            # is still ours. It comes again soon, and what its copies need is declared again.
            self._topology.forget()
            log.warning("copies.delayed", extra={"source": self.settings.name, "error": str(error)})
            if (release := self._endings.postponed(received, error)) is not None:
                again.append(release)
            else:
                self._endings.put_off(self._in_hand_again(received), error)
        if again:
            receiver.settle([*again, *self._hold_back({each.delivery.key for each in again}, turn)])
        if turn.revoked:
            log.warning("deliveries.revoked", extra={"source": self.settings.name, "count": len(turn.revoked)})

    def _in_hand_again(self, received: Received) -> Delivery[Any]:
        delivery = self._hand.inflight[received.handle] = Delivery(received, self)
        return delivery

    def _hold_back(self, keys: set[str | None], turn: Turn) -> list[Settlement]:
        """Of keys whose first message comes again: what would start now behind it goes back too, in order."""
        if not self.settings.ordered:
            return []
        keys.discard(None)
        back = [delivery._received for delivery in self._hand.hold_back(keys)]
        back += [received for received in turn.deliveries if received.key in keys]
        turn.deliveries = [received for received in turn.deliveries if received.key not in keys]
        return [Release(received) for received in back]

    def _isolate(self, receiver: Receiver) -> None:
        """
        One was handed out too often without a verdict. Give back what has not begun, wait for what runs, then run it
        with nothing else in hand.
        """
        hand, isolation = self._hand, self._hand.isolation
        if isolation.alone is not None:
            return
        if back := self._give_back(keep=isolation.suspects):
            receiver.settle(back)
        if len(hand.inflight) > len(isolation.suspects):
            return
        first = isolation.suspects[0]
        if others := isolation.single_out():
            receiver.settle([Release(other._received) for other in others])
            for other in others:
                del hand.inflight[other._received.handle]
        self._lose(receiver, receiver.flush(5.0))
        if not hand.holds(first):
            isolation.suspects.clear()
            return
        isolation.alone = first
        if first._received.solo:
            times = first._received.lost
            self._verdicts.append((first, Reject(f"crashes: {times} hand-outs ended with the death of their process")))
            return
        receiver.isolate(first._received)
        hand.start_now([first])

    def _give_back(self, keep: Sequence[Delivery[Any]] = ()) -> list[Settlement]:
        """Release what no handler has begun, in the order it came."""
        back = self._hand.unbegun(keep, self._endings.give_up_waiting(keep))
        for delivery in back:
            self._tally.note(delivery, "released", None)
        return [Release(delivery._received) for delivery in back]

    def _stopped(self, receiver: Receiver) -> bool:
        """One turn of stopping. True: nothing is left, or grace has ended."""
        hand = self._hand
        hand.isolation.stop()
        if back := self._give_back(keep=hand.isolation.suspects):
            receiver.settle(back)
        over = time.monotonic() - self._deadline
        if hand.inflight and over >= 0 and self._crew is not None:
            self._crew.cancel()  # tasks end now and are released uncounted; threads go on, the broker takes theirs back
        linger = 0.0 if self.settings.window else 1.0  # for cancelled tasks to say so; a pull loop has none
        if self._endings.awaiting:  # without their confirm the original would come again beside its copies
            linger = COPIES
        if hand.inflight and over < linger:
            return False
        self._lose(receiver, receiver.flush(5.0))
        return True
