"""Declaring, describing and changing what is in a Kafka cluster."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence

from kafka import TopicPartition
from kafka import errors as native
from kafka.admin import OffsetSpec
from kafka.structs import OffsetAndMetadata

from mqkit.backends.base import Address, Declaration, Depth, Outgoing, Received
from mqkit.backends.kafka.control import Control, partitions_of
from mqkit.backends.kafka.errors import translate
from mqkit.backends.kafka.names import Names
from mqkit.backends.kafka.options import Cluster
from mqkit.backends.kafka.producer import Transactions
from mqkit.backends.kafka.publisher import record_of
from mqkit.backends.kafka.record import ProducerRecord, tail_of
from mqkit.backends.kafka.survey import Survey
from mqkit.errors import NotFound, TopologyMismatch, Unavailable

KEPT_FOR_EVER = {"retention.ms": "-1"}
LADDER = KEPT_FOR_EVER | {"message.timestamp.type": "LogAppendTime"}
LETTERS = {"cleanup.policy": "compact", "min.compaction.lag.ms": "60000"}
KEYED, UNKEYED = "keyed", "unkeyed"
LIVE = {"retention.ms": "60000"}


class KafkaAdmin:
    """See `base.Admin`."""

    def __init__(self, cluster: Cluster, names: Names, transactions: Transactions, now: Callable[[], float]) -> None:
        self._cluster = cluster
        self._names = names
        self._transactions = transactions
        self._now = now
        self._control = Control(cluster)

    # -- declaring ---------------------------------------------------------------------------------------------------

    def declare(self, declarations: Sequence[Declaration]) -> None:
        there = self._control.topics()
        wanted: dict[str, tuple[int, dict[str, str]]] = dict.fromkeys(self._names.lanes, (1, LADDER))
        for each in declarations:
            wanted |= self._wanted(each)
        self._compare(there, wanted)
        self._compare_keys(declarations)
        self._create({name: how for name, how in wanted.items() if name not in there})
        self._register(declarations)
        for each in declarations:
            if each.address.group and not each.address.dead:
                self._start(each)

    def check(self, declarations: Sequence[Declaration]) -> None:
        there = self._control.topics()
        for each in declarations:
            wanted = self._wanted(each)
            for name in wanted:
                if name not in there:
                    raise NotFound(f"{each.address} does not exist on {self._cluster}: there is no topic {name}")
            self._compare(there, wanted)
        self._compare_keys(declarations)

    # What a topic cannot say of itself stands in the commits of a group that never has members: no topic more, and one
    # request to read it all. The cluster forgets it some days after the last declaration, and nothing but this check depends on it.

    def _compare_keys(self, declarations: Sequence[Declaration]) -> None:
        registered = self._control.committed([self._names.registry])[self._names.registry]
        for each in declarations:
            place = self._place(each)
            before = registered.get(place) if place is not None else None
            if before is not None and before.metadata not in ("", _registered(each)):
                raise TopologyMismatch(
                    f"{each.address} exists {'with' if before.metadata == KEYED else 'without'} key=, "
                    f"and is declared {'with' if each.keyed else 'without'} it"
                )

    def _register(self, declarations: Sequence[Declaration]) -> None:
        positions = {
            place: OffsetAndMetadata(0, _registered(each), -1)
            for each in declarations
            if (place := self._place(each)) is not None
        }
        if positions:
            self._control.commit(self._names.registry, positions)

    def _place(self, declaration: Declaration) -> TopicPartition | None:
        address = declaration.address
        if address.dead or address.kind == "broadcast":
            return None
        return TopicPartition(self._names.topic(address._replace(group="")), 0)

    def _wanted(self, declaration: Declaration) -> dict[str, tuple[int, dict[str, str]]]:
        address, names = declaration.address, self._names
        if address.kind == "broadcast":
            return {names.topic(address): (1, LIVE)}
        if address.dead:
            return {names.topic(address): (1, LETTERS)}
        partitions = declaration.partitions if declaration.partitions > 1 else self._cluster.options.partitions
        native = declaration.native
        config = dict(native.config) if native is not None else {}
        if address.kind == "queue":
            found = {names.topic(address): (partitions, KEPT_FOR_EVER | config)}
        else:
            kept = {"retention.ms": str(round(native.retain * 1000))} if native is not None and native.retain else {}
            found = {names.topic(address._replace(group="")): (partitions, kept | config)}
            if not address.group:
                return found
            found[names.topic(address)] = (partitions, KEPT_FOR_EVER)
        found[names.topic(address.dead_letters)] = (1, LETTERS)
        return found

    def _compare(self, there: Mapping[str, int], wanted: Mapping[str, tuple[int, dict[str, str]]]) -> None:
        for name, (partitions, _) in wanted.items():
            if name in there and there[name] != partitions:
                raise TopologyMismatch(
                    f"topic {name} exists with partitions={there[name]}, and {partitions} are asked for"
                )

    def _create(self, missing: Mapping[str, tuple[int, dict[str, str]]]) -> None:
        if not missing:
            return
        replication = self._cluster.options.replication or -1
        size = str(self._cluster.options.largest)
        topics = {
            name: {
                "num_partitions": partitions,
                "replication_factor": replication,
                "configs": {"max.message.bytes": size, **configs},
            }
            for name, (partitions, configs) in missing.items()
        }
        answer = self._control.call(self._control.driver.create_topics, topics, raise_errors=False)
        for topic in answer["topics"]:
            error = native.for_code(topic["error_code"])
            if error is not native.NoError and error is not native.TopicAlreadyExistsError:
                raise translate(error(f"{topic['name']}: {topic.get('error_message') or ''}"), self._cluster)
        self._control.call(self._control.driver.wait_for_topics, list(topics))

    def _start(self, declaration: Declaration) -> None:
        """A group that is new begins where it was declared, whenever its first consumer comes."""
        address = declaration.address
        group, topic = self._names.group(address), self._names.topic(address._replace(group=""))
        partitions = partitions_of(topic, self._control.topics().get(topic, 0))
        committed = self._control.committed([group])[group]
        if any(partition in committed for partition in partitions):
            return
        offsets = self._starts(declaration, partitions)
        self._control.commit(group, positions_at(offsets))

    def _starts(self, declaration: Declaration, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        start = getattr(declaration.native, "starts", {}).get(declaration.address.group)
        if start is None:
            first = declaration.start == "earliest"
            return (
                self._control.offsets(partitions, OffsetSpec.EARLIEST)
                if first
                else self._control.ends(self._control.written(partitions))
            )
        ends = self._control.ends(self._control.written(partitions))
        if isinstance(start, Mapping):
            return {place: start.get(place.partition, ends[place]) for place in partitions}
        found = self._control.offsets(partitions, round(start * 1000))
        return {place: found[place] if found[place] >= 0 else ends[place] for place in partitions}

    # -- looking -----------------------------------------------------------------------------------------------------

    def describe(self) -> Sequence[Depth]:
        return self._survey().depths()

    def count(self, address: Address) -> int:
        return len(self._survey().waiting(address))

    def browse(self, address: Address, *, limit: int, after: str | None = None) -> Sequence[Received]:
        messages = iter(self._survey().waiting(address))
        if after is not None:
            messages = itertools.dropwhile(lambda message: message.id != after, messages)
            next(messages, None)
        return list(itertools.islice(messages, limit))

    # -- changing ----------------------------------------------------------------------------------------------------

    def replace(self, address: Address, replacements: Mapping[str, Sequence[Outgoing]]) -> int:
        if not replacements:
            return 0
        if not address.dead:
            raise Unavailable(f"{address}: single messages of a Kafka topic cannot be removed")
        letters = [letter for letter in self._survey().letters(address) if letter.received.id in replacements]
        there = dict.fromkeys(letter.received.id for letter in letters)
        now, names = self._now(), self._names
        records = [ProducerRecord(names.topic(address), letter.key, None, tail_of([])) for letter in letters]
        for id in there:
            records += [record_of(copy, names.topic(copy.address), names, now) for copy in replacements[id]]
        if records:
            self._transactions.carry_out(records, {}, None)
        return len(there)

    def purge(self, address: Address) -> int:
        survey = self._survey()
        if address.dead:
            letters, topic = survey.letters(address), self._names.topic(address)
            if letters:
                self._transactions.carry_out(
                    [ProducerRecord(topic, letter.key, None, tail_of([])) for letter in letters], {}, None
                )
            return len(letters)
        count, topics, group = survey.ready(address), self._control.topics(), self._names.group(address)
        for topic in self._names.sources(address):
            ends = self._control.ends(self._control.written(partitions_of(topic, topics[topic])))
            if topic == self._names.topic(address):  # nobody else reads it
                self._control.call(self._control.driver.delete_records, ends)
            elif not self._control.commit(group, positions_at(ends)):
                raise Unavailable(f"{address} cannot be purged while it is consumed: other groups read its topic too")
        return count

    def delete(self, address: Address) -> None:
        there, names = self._control.topics(), self._names
        doomed = {name for name in there if self._belongs(name, address)}
        if doomed:
            self._control.call(self._control.driver.delete_topics, sorted(doomed), raise_errors=False)
        groups = [names.group(address)] if not address.dead and (address.kind == "queue" or address.group) else []
        if groups:
            self._control.call(self._control.driver.delete_groups, groups)
        deadline = time.monotonic() + self._cluster.options.patience
        while doomed & self._control.topics().keys() and time.monotonic() < deadline:
            time.sleep(0.01)

    def close(self) -> None:
        self._control.close()
        self._transactions.close()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _belongs(self, name: str, address: Address) -> bool:
        found = self._names.address(name)
        if found is None:
            return False
        if address.dead or address.kind == "broadcast":
            return found == address
        same = (found.kind, found.name) == (address.kind, address.name)
        return same and (not address.group or found.group == address.group)

    def _survey(self) -> Survey:
        return Survey(self._control, self._cluster, self._names, self._now)


def _registered(declaration: Declaration) -> str:
    return KEYED if declaration.keyed else UNKEYED


def positions_at(offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, OffsetAndMetadata]:
    return {place: OffsetAndMetadata(offset, "", -1) for place, offset in offsets.items()}
