"""Makes flights of a run's tasks: each packed with its inputs, by itself or with others that are quick.

Knows what a task is given, and how it travels. Must not know which worker gets it, nor what becomes of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from graphmill.engine.batches import in_batches
from graphmill.engine.blocks import Blocks
from graphmill.engine.limit import Limit
from graphmill.engine.recipes import Call
from graphmill.engine.seats import Client, Flight
from graphmill.engine.shipping import Numbers, Shipper
from graphmill.engine.stored import Stored
from graphmill.engine.terms import Terms
from graphmill.errors import EncodeError
from graphmill.memory.block import Encoded, Extent
from graphmill.memory.heap import Heap
from graphmill.scheduler.estimates import QUICK, Estimates
from graphmill.types import Key, Node
from graphmill.workers.work import Batch, Job, Shipped


@dataclass(frozen=True, slots=True)
class Task:
    """A task that the scheduler wants to be run."""

    key: Key
    node: Node
    values: dict[Key, Any]
    #: Bytes that it may take.
    allowance: int


class Host(Protocol):
    """The engine, as far as it matters to what is sent."""

    heap: Heap
    blocks: Blocks
    numbers: Numbers
    estimates: Estimates
    limit: Limit


class Sender:
    """Packs the tasks of one run.

    Parameters
    ----------
    engine
        Whose workers run them.
    client
        The run.
    terms
        How long tasks may take.
    """

    def __init__(self, engine: Host, client: Client, terms: Terms) -> None:
        self._engine = engine
        self._client = client
        self._terms = terms
        self.shipper = Shipper(engine.heap, engine.blocks, engine.numbers, engine)
        #: Values of the graph that workers were sent, by key, with the functions that they refer to.
        self._data: dict[Key, tuple[Encoded, tuple[int, ...]]] = {}

    def alone(self, task: Task) -> Flight:
        """Pack a task by itself.

        Raises
        ------
        EncodeError
            If it, or an input of it, cannot be sent.
        """
        node, functions = self.shipper.ship(task.node, f"the task {task.key!r}")
        inputs = []
        extents = node.extents
        for key, value in task.values.items():
            encoded, more = self._encoded(key, value)
            functions += more
            inputs.append((key, Shipped(encoded.payload, encoded.extents)))
            extents += encoded.extents
        engine = self._engine
        engine.limit.read_back += engine.blocks.bytes_on_disk(extents)
        expected = engine.estimates.seconds(task.key)
        job = Job(
            engine.numbers.next(),
            Shipped(node.payload, node.extents),
            tuple(inputs),
            expected < QUICK,
            task.allowance,
        )
        limit = self._terms.limit(task.key)
        about = task, node
        return Flight(self._client, job, functions, self.shipper.packed, expected, extents, about, limit)

    def together(self, quick: list[tuple[Task, float]], workers: int) -> Iterator[Flight | Task]:
        """Pack quick tasks, several at a time, for so many workers.

        Parameters
        ----------
        quick
            The tasks, and how many seconds each is expected to take.
        workers
            How many there are to run them.

        Yields
        ------
        Flight or Task
            A batch, or a task that has to go by itself.
        """
        for part in in_batches(quick, [seconds for _, seconds in quick], workers):
            nodes, functions = self.shipper.ship_small([task.node for task, _ in part])
            batch: list[Task] = []
            packed: list[tuple[Any, ...]] = []
            extents: tuple[Extent, ...] = ()
            expected = 0.0
            for (task, seconds), node in zip(part, nodes, strict=True):
                keys = node.keys if type(node) is Call else tuple(task.values)
                given = None if node is None else self._inputs_of(task, keys)
                if node is None or given is None:
                    yield task
                    continue
                inputs, more, lie = given
                batch.append(task)
                expected += seconds
                if type(node) is Call:
                    packed.append((node.recipe, node.leaves, inputs, task.allowance))
                else:
                    packed.append((node, keys, inputs, task.allowance))
                functions += more
                extents += lie
            if batch:
                job = Batch(self._engine.numbers.next(), *zip(*packed, strict=True))
                self._engine.limit.read_back += self._engine.blocks.bytes_on_disk(extents)
                yield Flight(self._client, job, functions, self.shipper.packed, expected, extents, batch)

    def _inputs_of(
        self, task: Task, keys: tuple[Key, ...]
    ) -> tuple[tuple[Shipped | bytes, ...], tuple[int, ...], tuple[Extent, ...]] | None:
        """Get the inputs of a task as a batch has them, the functions in them, and where they lie.

        None if they cannot be packed, or `keys`, which are in their order, are not those of the inputs.
        """
        inputs: list[Shipped | bytes] = []
        functions: tuple[int, ...] = ()
        lie: tuple[Extent, ...] = ()
        values = task.values
        if len(keys) != len(values):
            return None
        for key in keys:
            if key not in values:
                return None
            encoded = values[key]
            if type(encoded) is not Encoded:
                try:
                    encoded, more = self._encoded(key, encoded)
                except EncodeError:
                    return None
                functions += more
            if encoded.extents:
                inputs.append(Shipped(encoded.payload, encoded.extents))
                lie += encoded.extents
            else:
                inputs.append(encoded.payload)
        return tuple(inputs), functions, lie

    def _encoded(self, key: Key, value: Any) -> tuple[Encoded, tuple[int, ...]]:
        """Get an input as it travels, and the functions in it; what this process has is packed only once."""
        if type(value) is Encoded:
            return value, ()
        if type(value) is Stored and value.is_in(self._engine):
            return value.encoded, ()
        found = self._data.get(key)
        if found is None:
            found = self._data[key] = self.shipper.ship(value, f"the value of {key!r}")
        return found

    def forget(self, key: Key) -> None:
        """Let go of what was packed of a value of the graph that no task needs any more."""
        found = self._data.pop(key, None)
        if found is not None:
            self.shipper.forget(found[0])

    def close(self) -> None:
        """Let go of everything; may be called again."""
        self._data.clear()
        self.shipper.close()
