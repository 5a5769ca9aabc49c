"""Compute to release: order that finishes inputs rather than outputs.

Memory is given back when the last task that needs a block has run. So the question at each step is not which
result to finish next, but which of the blocks that are held can be let go at the least cost. A block's
*plan* is all the tasks that still need it, with all that they need in turn; its *growth* is what running the
plan adds to the live bytes. The best plan is that of the smallest peak among those that do not grow, else
that of the smallest growth. Tasks that free at least as much as they take are run at once.

Plans are kept from step to step. Two facts make that cheap. What remains of a plan after some of its tasks
have run is still a plan for the same block. And its growth follows from what has happened: running one of
its tasks takes that task's part out of it; a block whose last users are all in the plan is let go by it
from then on. Only the peak on the way must be worked out anew, and only for the plan that seems best.
"""

from __future__ import annotations

from heapq import heappop, heappush

from graphmill.order.index import Index

#: A plan that turned out too long is looked at again after so many tasks, doubled up to the limit each time.
_FIRST_WAIT = 16
_LONGEST_WAIT = 128
#: Longer plans cost more than they win.
_LONGEST_PLAN = 120
#: How many blocks are looked at to find out how long plans are.
_SAMPLE = 15
_NONE: frozenset[int] = frozenset()


class ReleaseOrder:
    """Orders the tasks of a graph so that blocks are let go early.

    Parameters
    ----------
    index
        The graph.
    rank
        A position for each task, to break ties and to begin with.
    reach
        How many tasks a plan may have; the cost grows with it.
    """

    def __init__(self, index: Index, rank: list[int], reach: int) -> None:
        count = len(index.keys)
        self._sizes = index.sizes
        self._users = [_by_rank(of, rank) for of in index.users]
        self._deps = [_by_rank(of, rank) for of in index.deps]
        self._rank = rank
        self._reach = reach
        self._kept = index.kept
        #: How many tasks, and results, still hold on to each output.
        self._holders = [len(of) + kept for of, kept in zip(index.users, index.kept, strict=True)]
        #: Where among the users of each output the first stands that has not run.
        self._first_user = [0] * count
        #: How many inputs each task still lacks.
        self._lacking = [len(of) for of in index.deps]
        self._done = bytearray(count)
        self._sequence: list[int] = []
        #: 1 for outputs that are held and that some task still needs.
        self._held = bytearray(count)
        #: Tasks that free at least what they take, if that is still so.
        self._free: list[int] = []
        #: Blocks that nobody has looked at yet.
        self._fresh: list[int] = []
        #: Blocks whose plan was too long, each with the time to look again, and how long to wait then.
        self._later: list[tuple[int, int]] = []
        self._wait = [_FIRST_WAIT // 2] * count
        #: For tasks that need too many others to be in any plan: until when that is taken to be so.
        self._far = [0] * count
        #: The plan of each held block, what it adds in the end, and whether its peak is known as well.
        self._plan: list[list[int]] = [[] for _ in range(count)]
        self._growth = [0] * count
        self._exact = bytearray(count)
        #: The blocks whose plans have a task.
        self._planned_by: list[set[int] | None] = [None] * count
        #: Plans, the best first: growing or not, two costs, rank, block, and which entry of the block it is.
        self._best: list[tuple[int, int, int, int, int, int]] = []
        self._entry = [0] * count
        #: For tasks that are the last to need some block: one such block.
        self._stands_for = [-1] * count
        #: Marks the tasks that a search has been to with the number of the search.
        self._met = [0] * count
        self._searches = 0

    def run(self) -> list[int]:
        """Give the tasks in the order in which to run them."""
        by_rank = sorted(range(len(self._rank)), key=self._rank.__getitem__)
        done = self._done
        for first in by_rank:
            # Each turn of the inner loop runs at least one task; `first` only says where to go on when
            # nothing is held.
            while not done[first]:
                self._follow(self._best_plan() or [self._first_to_run(first)])
        return self._sequence

    def _first_to_run(self, i: int) -> int:
        """Find the first task that must run before `i` can."""
        while self._lacking[i]:
            i = next(d for d in self._deps[i] if not self._done[d])
        return i

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
        self._done[i] = 1
        self._sequence.append(i)
        self._take_from_plans(i, self._sizes[i] - self._let_go_of_inputs(i))
        if self._holders[i] > self._kept[i]:
            self._held[i] = 1
            self._fresh.append(i)
        lacking = self._lacking
        for user in self._users[i]:
            lacking[user] -= 1
            if not lacking[user]:
                self._consider(user)

    def _let_go_of_inputs(self, i: int) -> int:
        """Take a task off its inputs; return the bytes that are given back."""
        holders, kept, users, done = self._holders, self._kept, self._users, self._done
        freed = 0
        for d in self._deps[i]:
            left = holders[d] = holders[d] - 1
            if left == kept[d]:
                self._held[d] = 0
                if not left:
                    freed += self._sizes[d]
                continue
            at = self._first_user[d]
            while done[users[d][at]]:
                at += 1
            self._first_user[d] = at
            if kept[d]:
                continue
            if left <= self._reach and self._sizes[d]:
                self._let_go_by_plans(d, i)
            if left == 1:
                self._consider(users[d][at])
        return freed

    def _let_go_by_plans(self, d: int, i: int) -> None:
        """Note in plans that have all users left of `d` that they let go of it, now that `i` has run."""
        done, planned_by, users, first = self._done, self._planned_by, self._users[d], self._first_user[d]
        plans = planned_by[users[first]]
        if not plans:
            return
        # A plan that had `i` as well has counted on it from the start.
        had_it = planned_by[i]
        plans = plans - had_it if had_it else plans
        for user in users[first + 1 :]:
            if not plans:
                return
            if not done[user]:
                plans = plans & (planned_by[user] or _NONE)
        for block in plans:
            if self._held[block]:
                self._growth[block] -= self._sizes[d]
                self._offer(block)

    def _take_from_plans(self, i: int, grown: int) -> None:
        """Take the part of a task that has run, and added so many bytes, out of the plans that have it."""
        blocks = self._planned_by[i]
        if not blocks:
            return
        self._planned_by[i] = None
        for block in blocks:
            if self._held[block]:
                self._growth[block] -= grown
                self._exact[block] = 0
                # One that got worse is found out when it comes up.
                if grown > 0:
                    self._offer(block)

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

    def _best_plan(self) -> list[int] | None:
        """Choose which block to let go: the one that adds least to the live bytes on the way."""
        held, later, fresh, best = self._held, self._later, self._fresh, self._best
        now = len(self._sequence)
        while later and later[0][0] <= now:
            fresh.append(heappop(later)[1])
        while fresh:
            block = fresh.pop()
            if held[block]:
                self._look_at(block)
        while best:
            *_, block, entry = best[0]
            if entry == self._entry[block] and held[block]:
                if self._exact[block]:
                    return self._plan[block]
                self._work_out(block)
            else:
                heappop(best)
        return None

    def _look_at(self, block: int) -> None:
        """Make a plan for a block, or put that off if it would be too long."""
        if self._holders[block] - self._kept[block] == 1:
            # Blocks that wait for one and the same task have one and the same plan: one of them is enough.
            user = self._users[block][self._first_user[block]]
            if self._stands_for[user] not in (-1, block):
                return
            self._stands_for[user] = block
        plan = self._needed_to_release(block)
        if plan is None:
            wait = self._wait[block] = min(_LONGEST_WAIT, 2 * self._wait[block])
            heappush(self._later, (len(self._sequence) + wait, block))
            return
        planned_by = self._planned_by
        for i in plan:
            blocks = planned_by[i]
            if blocks is None:
                planned_by[i] = {block}
            else:
                blocks.add(block)
        self._plan[block] = plan
        self._work_out(block)

    def _needed_to_release(self, block: int) -> list[int] | None:
        """List, in order, the tasks that must run before a block can be let go; None if too many."""
        done, deps, met, lacking, reach = self._done, self._deps, self._met, self._lacking, self._reach
        if self._holders[block] - self._kept[block] > reach:
            return None
        self._searches = search = self._searches + 1
        now = len(self._sequence)
        tasks: list[int] = []
        for user in self._users[block]:
            if done[user]:
                continue
            if self._far[user] > now:
                return None
            stack = [user]
            while stack:
                i = stack[-1]
                if met[i] == search:
                    stack.pop()
                    continue
                if lacking[i]:
                    missing = [d for d in deps[i] if not done[d] and met[d] != search]
                    if missing:
                        if len(missing) + len(tasks) > reach:
                            if not tasks:
                                self._far[user] = now + _FIRST_WAIT
                            return None
                        missing.reverse()
                        stack += missing
                        continue
                stack.pop()
                met[i] = search
                tasks.append(i)
                if len(tasks) > reach:
                    return None
        return tasks

    def _work_out(self, block: int) -> None:
        """Work out what the plan for a block adds to the live bytes: in the end, and at most on the way."""
        sizes, holders, deps, done = self._sizes, self._holders, self._deps, self._done
        plan = self._plan[block] = [i for i in self._plan[block] if not done[i]]
        used: dict[int, int] = {}
        live = peak = 0
        for i in plan:
            live += sizes[i]
            peak = max(peak, live)
            for d in deps[i]:
                used[d] = times = used.get(d, 0) + 1
                if times == holders[d]:
                    live -= sizes[d]
        self._growth[block] = live
        self._exact[block] = 1
        self._entry[block] = entry = self._entry[block] + 1
        rank = self._rank[plan[0]]
        cost = (0, peak, live) if live <= 0 else (1, live, peak)
        heappush(self._best, (*cost, rank, block, entry))

    def _offer(self, block: int) -> None:
        """Let a plan whose growth has become less be looked at in its turn; its peak is not known."""
        self._exact[block] = 0
        self._entry[block] = entry = self._entry[block] + 1
        growth = self._growth[block]
        cost = (0, 0, growth) if growth <= 0 else (1, growth, 0)
        heappush(self._best, (*cost, self._rank[block], block, entry))


def usual_reach(index: Index) -> int:
    """Find how many tasks it usually takes to let go of a block that needs no others, before any has run.

    Returns
    -------
    int
        A little more than the median of a sample; 0 where it takes so many that plans are of no use.
    """
    roots = [i for i, deps in enumerate(index.deps) if not deps and not index.kept[i]]
    if not roots:
        return 0
    sample = roots[:: max(1, len(roots) // _SAMPLE)]
    lengths = sorted(_tasks_to_release(index, root) for root in sample)
    usual = lengths[len(lengths) // 2]
    return 0 if usual > _LONGEST_PLAN else usual + usual // 4


def _tasks_to_release(index: Index, block: int) -> int:
    """Count the users of a block and all that they need, up to a limit."""
    seen: set[int] = set()
    stack = list(index.users[block])
    while stack and len(seen) <= _LONGEST_PLAN:
        i = stack.pop()
        if i != block and i not in seen:
            seen.add(i)
            stack.extend(index.deps[i])
    return len(seen)


def _by_rank(tasks: list[int], rank: list[int]) -> list[int]:
    return sorted(tasks, key=rank.__getitem__) if len(tasks) > 1 else tasks
