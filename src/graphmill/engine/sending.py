"""Makes flights of a run's tasks: each packed with its inputs, by itself or with others that are quick.

Knows what a task is given, and how it travels. Must not know which worker gets it, nor what becomes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from graphmill.engine.ahead import Ahead
from graphmill.engine.batches import LONGEST, MOST, in_batches
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

#: Bytes that a task may take that goes along with others: those that give little are let do so.
FOLLOWER_ALLOWANCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Task:
    """A task that the scheduler wants to be run."""

    key: Key
    node: Node
    values: dict[Key, Any]
    #: Bytes that it may take.
    allowance: int


class Bundle(NamedTuple):
    """What one batch consists of, in this order."""

    tasks: list[Task]
    #: Tasks that nobody has asked for yet, and that need what those give.
    followers: list[Key]


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

    def together(
        self, quick: list[tuple[Task, float]], workers: int, nodes: Mapping[Key, Node], ahead: Ahead
    ) -> Iterator[Flight | Task]:
        """Pack quick tasks, several at a time, for so many workers, with others that follow on them.

        Parameters
        ----------
        quick
            The tasks, and how many seconds each is expected to take.
        workers
            How many there are to run them.
        nodes
            The nodes of the graph.
        ahead
            Knows which others could follow.

        Yields
        ------
        Flight or Task
            A batch, or a task that has to go by itself.
        """
        parts = list(in_batches(quick, [seconds for _, seconds in quick], workers))
        for part in parts:
            spare = LONGEST - sum([seconds for _, seconds in part])
            keys = [task.key for task, _ in part]
            more = list(ahead.followers(keys, spare, MOST - len(part), in_line=len(parts) < workers))
            packed, functions = self.shipper.ship_small(
                [*[task.node for task, _ in part], *[nodes[key] for key, _ in more]]
            )
            packing = _Packing(self._encoded, functions)
            for (task, seconds), call in zip(part, packed, strict=False):
                if packing.add(task.key, call, task.values, task.values, task.allowance, seconds):
                    packing.tasks.append(task)
                else:
                    yield task
            if not packing.tasks:
                continue
            for (key, seconds), call in zip(more, packed[len(part) :], strict=True):
                needs, values = ahead.inputs(key)
                if packing.add(key, call, needs, values, FOLLOWER_ALLOWANCE, seconds):
                    packing.followers.append(key)
            yield self._flight(packing, ahead)

    def _flight(self, packing: _Packing, ahead: Ahead) -> Flight:
        engine, followers = self._engine, packing.followers
        inner = ahead.inner(packing.places, set(followers)) if followers else ()
        number = engine.numbers.next()
        calls, leaves, inputs, allowances = zip(*packing.packed, strict=True)
        job = Batch(number, calls, leaves, inputs, allowances, len(followers), inner)
        engine.limit.read_back += engine.blocks.bytes_on_disk(packing.extents)
        bundle = Bundle(packing.tasks, followers)
        expected, extents = packing.expected, tuple(packing.extents)
        return Flight(self._client, job, packing.functions, self.shipper.packed, expected, extents, bundle)

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


class _Packing:
    """A batch that is being put together.

    Parameters
    ----------
    encode
        Gives a value as it travels, and the functions in it.
    functions
        That its nodes refer to.
    """

    __slots__ = ("_encode", "expected", "extents", "followers", "functions", "packed", "places", "tasks")

    def __init__(
        self,
        encode: Callable[[Key, Any], tuple[Encoded, tuple[int, ...]]],
        functions: tuple[int, ...],
    ) -> None:
        self._encode = encode
        self.functions = functions
        self.tasks: list[Task] = []
        self.followers: list[Key] = []
        self.packed: list[tuple[Any, ...]] = []
        #: Where each task stands in it.
        self.places: dict[Key, int] = {}
        self.extents: list[Extent] = []
        self.expected = 0.0

    def add(
        self,
        key: Key,
        call: Call | bytes | None,
        needs: Collection[Key],
        values: Mapping[Key, Any],
        allowance: int,
        seconds: float,
    ) -> bool:
        """Add a task; False if it cannot be packed, or what it needs is neither in `values` nor in the batch.

        Parameters
        ----------
        key
            The task.
        call
            Its node, packed.
        needs
            The keys of its inputs.
        values
            Those that are there.
        allowance
            Bytes that it may take.
        seconds
            How long it is expected to take.
        """
        if call is None:
            return False
        keys = call.keys if type(call) is Call else tuple(needs)
        found = self._inputs(keys, values) if len(keys) == len(needs) else None
        if found is None:
            return False
        inputs, functions, extents = found
        if type(call) is Call:
            self.packed.append((call.recipe, call.leaves, inputs, allowance))
        else:
            self.packed.append((call, keys, inputs, allowance))
        self.places[key] = len(self.places)
        self.functions += functions
        self.extents += extents
        self.expected += seconds
        return True

    def _inputs(
        self, keys: tuple[Key, ...], values: Mapping[Key, Any]
    ) -> tuple[tuple[Shipped | bytes | int, ...], tuple[int, ...], list[Extent]] | None:
        """Get inputs as a batch has them, the functions in them, and where they lie."""
        inputs: list[Shipped | bytes | int] = []
        functions: tuple[int, ...] = ()
        extents: list[Extent] = []
        for key in keys:
            if key not in values:
                if key not in self.places:
                    return None
                inputs.append(self.places[key])
                continue
            encoded = values[key]
            if type(encoded) is not Encoded:
                try:
                    encoded, more = self._encode(key, encoded)
                except EncodeError:
                    return None
                functions += more
            if encoded.extents:
                inputs.append(Shipped(encoded.payload, encoded.extents))
                extents += encoded.extents
            else:
                inputs.append(encoded.payload)
        return tuple(inputs), functions, extents
