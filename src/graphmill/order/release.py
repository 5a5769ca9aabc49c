"""Compute to release: order that finishes inputs rather than outputs.

Memory is given back when the last task that needs a block has run. So the question at each step is not which
result to finish next, but which of the blocks that are held can be let go at the least cost: take all
tasks that still need it, with all that they need in turn, and work out what running them would add to the
live bytes.
Tasks that free at least as much as they take are run at once.

The cost is kept linear in the number of tasks: only some of the held blocks are looked at, only so many tasks
deep, and a block whose tasks turned out to be too many is left alone for a while.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphmill.order.index import Index


@dataclass(frozen=True, slots=True)
class Effort:
    """How far to look."""

    #: How many of the largest held blocks to look at, for each decision.
    largest: int
    #: How many of those held most recently.
    latest: int
    #: How many tasks it may take to let go of a block.
    reach: int


class ReleaseOrder:
    """Orders the tasks of a graph so that blocks are let go early.

    Parameters
    ----------
    index
        The graph.
    rank
        A position for each task, to break ties and to begin with.
    effort
        How far to look.
    """

    def __init__(self, index: Index, rank: list[int], effort: Effort) -> None:
        count = len(index.keys)
        self._sizes = index.sizes
        self._users = [_by_rank(of, rank) for of in index.users]
        self._deps = [_by_rank(of, rank) for of in index.deps]
        self._rank = rank
        self._effort = effort
        #: How many tasks, and results, still hold on to each output.
        self._holders = [len(of) + kept for of, kept in zip(index.users, index.kept, strict=True)]
        self._kept = index.kept
        #: How many inputs each task still lacks.
        self._lacking = [len(of) for of in index.deps]
        self._done = bytearray(count)
        self._sequence: list[int] = []
        #: Outputs that are held and that some task still needs, the oldest first.
        self._held: dict[int, None] = {}
        #: Tasks that free at least what they take, if that is still so.
        self._free: list[int] = []
        #: Blocks that took too much: when to look again, and how long to wait the next time.
        self._look_again: dict[int, int] = {}
        self._patience: dict[int, int] = {}

    def run(self) -> list[int]:
        """Give the tasks in the order in which to run them."""
        by_rank = sorted(range(len(self._rank)), key=self._rank.__getitem__)
        done = self._done
        for first in by_rank:
            # Each turn of the inner loop runs at least one task; `first` only says where to go on when
            # nothing is held.
            while not done[first]:
                plan = self._best_plan() or [self._first_to_run(first)]
                self._follow(plan)
        return self._sequence

    def _follow(self, plan: list[int]) -> None:
        """Run a plan as far as its first task that uses anything, then all that has become free."""
        for i in plan:
            self._run(i)
            if self._deps[i]:
                break
        free, done = self._free, self._done
        while free:
            i = free.pop()
            if not done[i]:
                self._run(i)

    def _run(self, i: int) -> None:
        holders, lacking, done = self._holders, self._lacking, self._done
        done[i] = 1
        self._sequence.append(i)
        for d in self._deps[i]:
            holders[d] -= 1
            if holders[d] == self._kept[d]:
                self._held.pop(d, None)
            elif holders[d] == 1:
                for user in self._users[d]:
                    if not done[user]:
                        self._consider(user)
        if holders[i] > self._kept[i]:
            self._held[i] = None
        for user in self._users[i]:
            lacking[user] -= 1
            self._consider(user)

    def _consider(self, i: int) -> None:
        """Note a task that can run and frees at least what it takes."""
        if self._lacking[i]:
            return
        grown = self._sizes[i]
        for d in self._deps[i]:
            if self._holders[d] == 1:
                grown -= self._sizes[d]
        if grown <= 0:
            self._free.append(i)

    def _first_to_run(self, i: int) -> int:
        """Find the first task that must run before `i` can."""
        while self._lacking[i]:
            i = next(d for d in self._deps[i] if not self._done[d])
        return i

    def _best_plan(self) -> list[int] | None:
        """Choose which block to let go: the one that adds least to the live bytes on the way."""
        best: tuple[int, int, int, int] | None = None
        plan = None
        now = len(self._sequence)
        for block in self._candidates():
            if self._look_again.get(block, 0) > now:
                continue
            tasks = self._needed_to_release(block)
            if tasks is None:
                wait = self._patience[block] = min(64, 2 * self._patience.get(block, 1))
                self._look_again[block] = now + wait
                continue
            growth, peak = self._cost(tasks)
            rank = self._rank[tasks[0]]
            found = (0, peak, growth, rank) if growth <= 0 else (1, growth, peak, rank)
            if best is None or found < best:
                best, plan = found, tasks
        return plan

    def _candidates(self) -> list[int]:
        held, effort = list(self._held), self._effort
        if len(held) <= effort.largest + effort.latest:
            return held[::-1]
        chosen = dict.fromkeys(held[: -effort.latest - 1 : -1])
        # The latest of equals, as these are the ones that the depth-first tie-break is about to use.
        held.reverse()
        held.sort(key=self._sizes.__getitem__, reverse=True)
        chosen.update(dict.fromkeys(held[: effort.largest]))
        return list(chosen)

    def _needed_to_release(self, block: int) -> list[int] | None:
        """List, in order, the tasks that must run before a block can be let go; None if too many."""
        done, deps, reach = self._done, self._deps, self._effort.reach
        seen: set[int] = set()
        tasks: list[int] = []
        for user in self._users[block]:
            if done[user] or user in seen:
                continue
            stack = [user]
            while stack:
                i = stack[-1]
                if i in seen:
                    stack.pop()
                    continue
                missing = [d for d in deps[i] if not done[d] and d not in seen]
                if missing:
                    if len(missing) + len(tasks) > reach:
                        return None
                    missing.reverse()
                    stack += missing
                    continue
                stack.pop()
                seen.add(i)
                tasks.append(i)
                if len(tasks) > reach:
                    return None
        return tasks

    def _cost(self, tasks: list[int]) -> tuple[int, int]:
        """Work out what running tasks adds to the live bytes: in the end, and at most on the way."""
        sizes, holders = self._sizes, self._holders
        used: dict[int, int] = {}
        live = peak = 0
        for i in tasks:
            live += sizes[i]
            peak = max(peak, live)
            for d in self._deps[i]:
                used[d] = times = used.get(d, 0) + 1
                if times == holders[d]:
                    live -= sizes[d]
        return live, peak


def _by_rank(tasks: list[int], rank: list[int]) -> list[int]:
    return sorted(tasks, key=rank.__getitem__) if len(tasks) > 1 else tasks
