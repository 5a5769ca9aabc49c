"""Rewriting graphs before they run: leaving out, fusing, and computing again instead of storing.

Every function here takes a graph of any dialect and returns a new one; what it was given stays as
it is. Tuple tasks are nested in each other. A task-spec node cannot be opened without Dask, so it
becomes a `ChainedTask`: first what was put into it, then the node itself.

Knows what tasks refer to, and how to put one into another. Must not know Dask, nor how a graph is
run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, TypeAlias

from graphmill.graph.legacy import MixedTask, Reader, TupleTask
from graphmill.graph.model import as_mapping, read_graph
from graphmill.graph.taskspec import Kind, Kinds
from graphmill.graph.walk import flatten, reverse_dict, sort_topologically
from graphmill.types import Key, Node

#: How deep fused tuples may be nested; running, hashing and pickling them recurses.
MAX_DEPTH: Final = 50
#: How many calls a task may consist of and still be computed again wherever it is used.
MAX_CALLS: Final = 50
#: How long the name of a fused task may be.
MAX_NAME: Final = 120
#: From how many hexadecimal digits on a part of a name is taken for a hash.
_HASH_DIGITS: Final = 8

#: Makes a key for a fused task of the keys in it, first to last; or None, to rename nothing.
Renamer: TypeAlias = Callable[[list[Key]], Key | None]
Dependencies: TypeAlias = Mapping[Key, Collection[Key]]


class ChainedTask:
    """A node that runs other nodes first, and gives it their values.

    Parameters
    ----------
    steps
        Keys and nodes, in the order in which to run them. A step may use the values of earlier
        ones.
    outer
        The node that makes the result.

    Notes
    -----
    The keys of the steps are known inside only: the same key may mean something else in the graph.

    Examples
    --------
    >>> from graphmill.graph.legacy import TupleTask
    >>> inner = TupleTask((abs, "x"), frozenset({"x"}))
    >>> outer = TupleTask((max, "y", "z"), frozenset({"y", "z"}))
    >>> task = ChainedTask((("y", inner),), outer)
    >>> sorted(task.dependencies), task({"x": -3, "z": 2})
    (['x', 'z'], 3)
    """

    __graphmill_node__ = True
    __slots__ = ("_dead", "dependencies", "outer", "steps")

    def __init__(self, steps: Iterable[tuple[Key, Node]], outer: Node) -> None:
        self.steps = tuple(steps)
        self.outer = outer
        #: For each step, the values of earlier steps that nothing after it needs.
        self._dead: tuple[tuple[Key, ...], ...]
        #: The keys whose values it must be given.
        self.dependencies: frozenset[Key]
        needed = set(outer.dependencies)
        dead = []
        made = {key for key, _ in self.steps}
        for key, node in reversed(self.steps):
            needed.discard(key)
            dead.append(tuple(dep for dep in node.dependencies if dep in made - needed))
            needed.update(node.dependencies)
        self._dead = tuple(reversed(dead))
        self.dependencies = frozenset(needed)

    def __call__(self, values: Mapping[Key, Any]) -> Any:
        """Run the steps, and then the outer node."""
        known = dict(values)
        for (key, node), dead in zip(self.steps, self._dead, strict=True):
            inputs = {dep: known[dep] for dep in node.dependencies}
            # A long chain of large arrays must not hold them all.
            for dep in dead:
                del known[dep]
            known[key] = node(inputs)
            del inputs
        return self.outer({dep: known[dep] for dep in self.outer.dependencies})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.steps!r}, {self.outer!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.steps, self.outer)


def cull(dsk: Any, keys: Any) -> tuple[dict[Key, Any], dict[Key, list[Key]]]:
    """Leave out the tasks that the keys asked for do not need.

    Parameters
    ----------
    dsk
        A graph of any dialect.
    keys
        A key, or nested lists of keys.

    Returns
    -------
    dict
        The graph, as far as it is needed.
    dict
        For each key, the keys that it refers to, each as often as it does.

    Raises
    ------
    MissingKeyError
        If a key asked for is not in the graph.
    MissingDependencyError
        If a task-spec node needs a key that is not in the graph.

    Examples
    --------
    >>> culled, dependencies = cull({"x": 1, "y": (abs, "x"), "z": (max, "x", "x")}, "z")
    >>> sorted(culled), dependencies
    (['x', 'z'], {'x': [], 'z': ['x', 'x']})
    """
    dsk = as_mapping(dsk)
    reader = Reader(dsk)
    found: dict[Key, list[Key]] = {}
    stack = list(_key_set(keys))
    while stack:
        key = stack.pop()
        if key in found:
            continue
        if key not in dsk:
            read_graph(dsk, _key_set(keys))  # raises, and says what is missing where
        found[key] = reader.references(dsk[key])
        stack.extend(found[key])
    # The walk went through sets; the order of the graph does not change from process to process.
    dependencies = {key: found[key] for key in dsk if key in found}
    return {key: dsk[key] for key in dependencies}, dependencies


def fuse(
    dsk: Any,
    keys: Any = None,
    dependencies: Dependencies | None = None,
    rename_keys: bool | Renamer = False,
) -> tuple[dict[Key, Any], dict[Key, set[Key]]]:
    """Make one task of each linear chain.

    In a chain, each task but the first refers to nothing but the task before, once, and nothing
    else refers to that one. The fused task has the key of the last one. Chains of tuple tasks are
    cut where they would be nested deeper than `MAX_DEPTH`. Data other than numbers, strings and
    tuples is not fused.

    Parameters
    ----------
    dsk
        A graph of any dialect.
    keys
        A key, or nested lists of keys, that must stay in the graph.
    dependencies
        What each key refers to, as `cull` returns it.
    rename_keys
        Whether to name fused tasks after all that went into them; or a function that makes a key of
        the keys of a chain, first to last. The last key then stands for the new one, which must not
        be a string that some task holds as data.

    Returns
    -------
    dict
        The graph with its chains fused.
    dict
        For each key, the set of keys that it depends on.

    Examples
    --------
    >>> fused, dependencies = fuse({"x": -1, "y": (abs, "x"), "z": (float, "y")})
    >>> fused, dependencies
    ({'z': (<class 'float'>, (<built-in function abs>, -1))}, {'z': set()})
    >>> sorted(fuse({"x": -1, "y": (abs, "x"), "z": (float, "y")}, keys=["y"])[0])
    ['y', 'z']
    """
    dsk = as_mapping(dsk)
    rewriter = _Rewriter(dsk)
    # A set does not tell whether a task refers to a key twice.
    references: dict[Key, list[Key]] = {
        key: deps
        if isinstance(deps := (dependencies or {}).get(key), list)
        else rewriter.reader.references(value)
        for key, value in dsk.items()
    }
    segments = [
        segment
        for chain in _find_chains(rewriter, references, _key_set(keys))
        for segment in rewriter.cut(chain)
    ]
    needs = {key: set(refs) for key, refs in references.items()}
    fused: dict[Key, Any] = {}
    for segment in segments:
        fused[segment[-1]] = rewriter.nest(segment)
        needs[segment[-1]] = needs[segment[0]]
    gone = {key for segment in segments for key in segment[:-1]}
    result = {key: fused.get(key, value) for key, value in dsk.items() if key not in gone}
    needs = {key: needs[key] for key in result}
    if rename_keys:
        _rename(result, needs, segments, default_renamer if rename_keys is True else rename_keys)
    return result, needs


def default_renamer(keys: list[Key]) -> Key | None:
    """Name a fused task after all that went into it; None if its key has no name to add to.

    Parameters
    ----------
    keys
        The keys of the chain, the last one to run at the end.

    Examples
    --------
    >>> default_renamer([("load", 0), ("sum-1f2e3d4c", 0), ("store", 0)])
    ('load-sum-store', 0)
    """
    last = keys[-1]
    key_name = last[0] if isinstance(last, tuple) and last else last
    if not isinstance(key_name, str):
        return None
    others = {_stem(key) for key in keys[:-1]} - {_stem(last), ""}
    name = "-".join([*sorted(others), key_name])
    if len(name) > MAX_NAME:
        name = name[-MAX_NAME:]  # the end is what tells one task from another
    return (name, *last[1:]) if isinstance(last, tuple) else name


def inline(
    dsk: Any,
    keys: Any = None,
    inline_constants: bool = True,
    dependencies: Dependencies | None = None,
) -> dict[Key, Any]:
    """Put what keys stand for in the place of the keys.

    The keys stay in the graph; `cull` removes them.

    Parameters
    ----------
    dsk
        A graph of any dialect.
    keys
        A key, or nested lists of keys, to put into the tasks that refer to them.
    inline_constants
        Do this with all data, and with all keys that only stand for another key, as well.
    dependencies
        What each key refers to, if that is known.

    Raises
    ------
    CycleError
        If such keys stand for each other.

    Examples
    --------
    >>> inline({"x": 1, "y": (abs, "x"), "z": (max, "x", "y")})["z"]
    (<built-in function max>, 1, 'y')
    >>> inline({"x": 1, "y": (abs, "x"), "z": (max, "x", "y")}, keys="y", inline_constants=False)["z"]
    (<built-in function max>, 'x', (<built-in function abs>, 'x'))
    """
    dsk = as_mapping(dsk)
    rewriter = _Rewriter(dsk)
    given = dependencies or {}
    needs = {
        key: given[key] if key in given else rewriter.reader.references(value) for key, value in dsk.items()
    }
    wanted = _key_set(keys)
    if inline_constants:
        wanted.update(key for key, value in dsk.items() if rewriter.is_constant(value))
    order = sort_topologically(
        {key: [dep for dep in needs[key] if dep in wanted] for key in dsk if key in wanted}
    )
    inlined: dict[Key, Any] = {}
    for key in order:
        inlined[key] = rewriter.substitute(dsk[key], _part(inlined, needs[key]))
    return {
        key: inlined[key] if key in inlined else rewriter.substitute(value, _part(inlined, needs[key]))
        for key, value in dsk.items()
    }


def inline_functions(
    dsk: Any,
    output: Any,
    fast_functions: Iterable[Callable[..., Any]] | None = None,
    inline_constants: bool = False,
    dependencies: Dependencies | None = None,
) -> Mapping[Key, Any]:
    """Compute cheap functions again inside the tasks that use them, instead of storing results.

    Parameters
    ----------
    dsk
        A graph of any dialect.
    output
        A key, or nested lists of keys, that must stay in the graph.
    fast_functions
        The functions that cost less to compute again than to store. A task goes into its dependents
        if it calls nothing else. It stays where it is if it would consist of more than `MAX_CALLS`
        calls.
    inline_constants
        Put data into the tasks that use it as well.
    dependencies
        What each key refers to, if that is known.

    Examples
    --------
    >>> inline_functions({"x": -1, "y": (abs, "x"), "z": (max, "x", "y")}, ["z"], [abs])
    {'x': -1, 'z': (<built-in function max>, 'x', (<built-in function abs>, 'x'))}
    """
    graph = as_mapping(dsk)
    if not fast_functions:
        return graph
    rewriter = _Rewriter(graph)
    references = {key: rewriter.reader.references(value) for key, value in graph.items()}
    protected = _key_set(output)
    if isinstance(output, tuple):
        protected.update(output)  # one key, or several
    dependents = reverse_dict(references)
    calls = rewriter.calls_of_fast(
        [key for key in graph if dependents[key] and key not in protected], set(fast_functions)
    )
    keys = _cheap_keys(references, calls)
    if not keys:
        return graph
    result = inline(graph, keys, inline_constants, dependencies or references)
    return {key: value for key, value in result.items() if key not in keys}


# ---- choosing


def _key_set(keys: Any) -> set[Key]:
    if keys is None:
        return set()
    if isinstance(keys, (str, bytes, tuple)) or not isinstance(keys, Iterable):
        return {keys}
    return set(flatten(list(keys)))


def _part(values: Mapping[Key, Any], keys: Iterable[Key]) -> dict[Key, Any]:
    return {key: values[key] for key in keys if key in values}


def _find_chains(
    rewriter: _Rewriter, references: Mapping[Key, list[Key]], protected: set[Key]
) -> list[list[Key]]:
    """List the chains of two tasks or more, each from its first task to its last."""
    uses = Counter(dep for refs in references.values() for dep in refs)
    before: dict[Key, Key] = {}
    for key, refs in references.items():
        if len(refs) == 1 and uses[refs[0]] == 1 and refs[0] not in protected:
            dep = refs[0]
            if dep in references and rewriter.can_fuse(dep, key):
                before[key] = dep
    inside = set(before.values())
    chains = []
    # A cycle has no last task, and stays as it is.
    for key in references:
        if key in before and key not in inside:
            chain = [key]
            while chain[-1] in before:
                chain.append(before[chain[-1]])
            chains.append(chain[::-1])
    return chains


def _cheap_keys(references: Mapping[Key, list[Key]], calls: Mapping[Key, int]) -> set[Key]:
    """Choose the keys to compute again, of those with a number of calls of their own."""
    totals: dict[Key, int] = {}
    edges = {key: [dep for dep in references[key] if dep in calls] for key in calls}
    for key in sort_topologically(edges):
        total = calls[key] + sum(totals.get(dep, 0) for dep in edges[key])
        if total <= MAX_CALLS:
            totals[key] = total
    return set(totals)


def _rename(
    dsk: dict[Key, Any], needs: dict[Key, set[Key]], segments: list[list[Key]], renamer: Renamer
) -> None:
    for segment in segments:
        name, last = renamer(segment), segment[-1]
        # A segment of one task is what a cut left over: nothing was fused.
        if name is not None and name not in dsk and len(segment) > 1:
            dsk[name], dsk[last] = dsk[last], name
            needs[name], needs[last] = needs[last], {name}


def _stem(key: Key) -> str:
    """Leave the hash off the name of a key."""
    name = key[0] if isinstance(key, tuple) and key else key
    if not isinstance(name, str):
        return ""
    stem, _, end = name.rpartition("-")
    if stem and len(end) >= _HASH_DIGITS and not set(end) - set("0123456789abcdef"):
        return stem
    return name


# ---- putting one into another


class _Rewriter:
    """Takes the tasks of one graph apart and builds them anew."""

    __slots__ = ("_dsk", "_kinds", "reader")

    def __init__(self, dsk: Mapping[Key, Any]) -> None:
        self._dsk = dsk
        self._kinds = Kinds()
        self.reader = Reader(dsk)

    def is_constant(self, value: Any) -> bool:
        """Say whether a value of the graph is data, or only stands for another key."""
        kind = self._kinds[type(value)]
        if kind in (Kind.ALIAS, Kind.REFERENCE, Kind.NAME, Kind.DATA, Kind.LITERAL):
            return True
        if kind is Kind.TUPLE and self._is_key(value):
            return True
        return kind is not Kind.NODE and self.reader.read(value) is None

    def can_fuse(self, key: Key, user: Key) -> bool:
        """Say whether a task, or a small piece of data, may become a part of its only user."""
        value = self._dsk[key]
        if any(getattr(task, "block_fusion", False) for task in (value, self._dsk[user])):
            return False
        if self._kinds[type(value)] is Kind.DATA:
            return False
        small = isinstance(value, (str, int, float, complex)) or type(value) is tuple
        return small or self.reader.read(value) is not None

    def calls_of_fast(self, keys: Iterable[Key], fast: set[Any]) -> dict[Key, int]:
        """Count the calls of each task that calls nothing but `fast` functions."""
        result = {}
        for key in keys:
            value = self._dsk[key]
            kind = self._kinds[type(value)]
            if kind is Kind.NODE or (kind is Kind.TUPLE and value and callable(value[0])):
                functions = self._functions(value)
                try:
                    if functions and fast.issuperset(functions):
                        result[key] = len(functions)
                except TypeError:
                    continue  # a function that cannot be hashed is none of them
        return result

    def cut(self, chain: list[Key]) -> list[list[Key]]:
        """Cut a chain into parts that can be nested in each other."""
        values = [self._dsk[key] for key in chain]
        if self._has_nodes(values):
            return [chain]
        segments: list[list[Key]] = []
        room = 0
        for key, value in zip(chain, values, strict=True):
            depth = self._depth(value)
            if depth > room or not segments:
                segments.append([])
                room = MAX_DEPTH
            segments[-1].append(key)
            room -= depth
        return segments

    def nest(self, segment: list[Key]) -> Any:
        """Make one task of a part of a chain."""
        values = [self._dsk[key] for key in segment]
        if len(segment) > 1 and self._has_nodes(values):
            *steps, outer = [self._node(value) for value in values]
            return ChainedTask(zip(segment, steps, strict=False), outer)
        nested = values[0]
        for before, value in zip(segment, values[1:], strict=False):
            nested = self.substitute(value, {before: nested})
        return nested

    def substitute(self, value: Any, parts: Mapping[Key, Any]) -> Any:
        """Put parts into a value where it refers to their keys; otherwise give the value itself."""
        kind = self._kinds[type(value)]
        if not parts or kind is Kind.LITERAL or kind is Kind.DATA:
            return value
        if kind is Kind.NAME:
            return parts.get(value, value)
        if kind is Kind.REFERENCE:
            return parts.get(value.key, value)
        if kind is Kind.ALIAS:
            (target,) = value.dependencies
            return parts.get(target, value)
        if kind is Kind.NODE:
            steps = [(dep, self._node(parts[dep])) for dep in value.dependencies if dep in parts]
            return ChainedTask(steps, value) if steps else value
        if kind is Kind.DICT:
            items = self._substitute_all(value.values(), parts)
            return value if items is None else dict(zip(value, items, strict=True))
        return self._substitute_sequence(value, kind, parts)

    def _substitute_sequence(self, value: Any, kind: Kind, parts: Mapping[Key, Any]) -> Any:
        if kind is Kind.TUPLE and value and callable(value[0]):
            items = self._substitute_all(value[1:], parts)
            return value if items is None else (value[0], *items)
        if kind is Kind.TUPLE and self._is_key(value):
            return parts.get(value, value)
        items = self._substitute_all(value, parts)
        if items is None:
            return value
        if kind is Kind.TUPLE:
            return self._literal_tuple(items)
        if kind is Kind.NAMED_TUPLE:
            return type(value)._make(items)
        return items if isinstance(value, list) else self._literal_set(type(value), items)

    def _substitute_all(self, values: Iterable[Any], parts: Mapping[Key, Any]) -> list[Any] | None:
        """Put parts into each value; None if none of them refers to any."""
        old = list(values)
        new = [self.substitute(value, parts) for value in old]
        return None if all(a is b for a, b in zip(old, new, strict=True)) else new

    def _literal_tuple(self, items: list[Any]) -> Any:
        """Write a tuple down so that nobody takes it for a task or a key."""
        result = tuple(items)
        kinds = {self._kinds[type(item)] for item in items}
        if callable(items[0]) or (kinds <= {Kind.NAME, Kind.TUPLE} and self._is_key(result)):
            return tuple, items
        return result

    def _literal_set(self, cls: type, items: list[Any]) -> Any:
        """Write a set down, although its items may not be hashable, or may look the same."""
        if all(self._kinds[type(item)] in (Kind.NAME, Kind.TUPLE, Kind.LITERAL) for item in items):
            try:
                result = cls(items)
            except TypeError:
                return cls, items
            if len(result) == len(items):
                return result
        return cls, items

    def _node(self, value: Any) -> Node:
        if self._kinds[type(value)] in (Kind.NODE, Kind.ALIAS, Kind.DATA):
            node: Node = value
            return node
        dependencies, nodes = self.reader.read(value) or (frozenset(), False)
        return MixedTask(value, dependencies) if nodes else TupleTask(value, dependencies)

    def _has_nodes(self, values: Iterable[Any]) -> bool:
        return any((read := self.reader.read(value)) and read[1] for value in values)

    def _is_key(self, value: tuple[Any, ...]) -> bool:
        try:
            return value in self._dsk
        except TypeError:
            return False  # a tuple that holds something unhashable

    def _depth(self, value: Any) -> int:
        """Count how deep a tuple task is nested."""
        deepest = 0
        stack = [(value, 0)]
        while stack:
            item, depth = stack.pop()
            deepest = max(deepest, depth)
            kind = self._kinds[type(item)]
            if kind is Kind.DICT:
                item = item.values()
            elif kind is Kind.TUPLE:
                if self._is_key(item):
                    continue
            elif kind is not Kind.CONTAINER and kind is not Kind.NAMED_TUPLE:
                continue
            deepest = max(deepest, depth + 1)
            stack.extend((inner, depth + 1) for inner in item)
        return deepest

    def _functions(self, value: Any) -> list[Any]:
        """List the functions that a task calls, each as often as it does."""
        found: list[Any] = []
        stack = [value]
        while stack:
            item = stack.pop()
            kind = self._kinds[type(item)]
            if kind is Kind.TUPLE and item and callable(item[0]):
                found.append(_unwrap(item[0]))
                stack.extend(item[1:])
            elif kind in (Kind.TUPLE, Kind.CONTAINER, Kind.NAMED_TUPLE):
                stack.extend(item)
            elif kind is Kind.DICT:
                stack.extend(item.values())
            elif kind is Kind.NODE:
                functions, inner = _open(item)
                found.extend(functions)
                stack.extend(
                    part
                    for part in inner
                    if isinstance(item, TupleTask) or self._kinds[type(part)] is Kind.NODE
                )
        return found


def _open(node: Any) -> tuple[list[Any], list[Any]]:
    """Get the functions that a node calls itself, and what else may be a task inside it."""
    if isinstance(node, ChainedTask):
        return [], [*(step for _, step in node.steps), node.outer]
    if isinstance(node, TupleTask):
        return [], [node.spec]
    if not hasattr(node, "func"):
        return [type(node)], []  # nobody knows what it does
    # Dask's containers are tasks, too, whose function only builds the container.
    functions = [] if hasattr(type(node), "klass") else [_unwrap(node.func)]
    return functions, [*node.args, *node.kwargs.values()]


def _unwrap(function: Any) -> Any:
    while hasattr(function, "func"):
        function = function.func
    return function
