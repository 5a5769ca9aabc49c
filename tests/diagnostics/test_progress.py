"""Progress: what is counted, and how it is drawn; nothing here waits."""

import builtins
import io
import threading
from collections import Counter

import pytest
from rich.console import Console, Group

from graphmill.diagnostics import notebook
from graphmill.diagnostics.display import LineDisplay, display_for, progress
from graphmill.diagnostics.lines import last_line, line
from graphmill.diagnostics.log import Loss, RunLog, Tally
from graphmill.diagnostics.terminal import TerminalDisplay, bar, head_rows, kind_rows
from graphmill.diagnostics.tracker import KindState, Picture, Tracker
from tests.diagnostics.conftest import MB, glance


class FakeEngine:
    num_workers = 4
    recorder = None
    closed = False

    def __init__(self):
        self.now = glance(0.0, private=100 * MB, arenas=50 * MB, spilled=5 * MB, on_disk=MB, busy=3)

    def glance(self):
        return self.now


class Clock:
    def __init__(self, now=100.0):
        self.now = now

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


def begun(**options):
    keys = ["total-3"] + [("sum-2", i) for i in range(4)] + [("load-1", i) for i in range(4)]
    return RunLog(**{"began": 100.0, "keys": keys, **options})


class TestTracker:
    def test_counts_by_kind(self, clock):
        tracker, log = Tracker(clock), begun()
        tracker.on_run(FakeEngine(), log)
        log.tallies = {"load-1": Tally(3, 3.0), "sum-2": Tally(1, 0.5)}
        log.under_way = {("load-1", 3): 0, ("sum-2", 1): 0}
        clock.now = 102.0
        picture = tracker.picture()
        assert picture.kinds == (
            KindState("load", 3, 1, 4), KindState("sum", 1, 1, 4), KindState("total", 0, 0, 1)
        )  # fmt: skip
        assert (picture.done, picture.running, picture.waiting, picture.total) == (4, 2, 3, 9)
        assert (picture.elapsed, picture.rate) == (2.0, 2.0)
        # Left are a load of 1 s, three sums of 0.5 s, and one task of a new kind. 3.5 s of work took 2 s.
        assert picture.left == pytest.approx((1.0 + 3 * 0.5 + 3.5 / 4) * 2.0 / 3.5)
        assert (picture.memory, picture.limit, picture.spilled, picture.busy) == (150 * MB, 800 * MB, 0, 3)

    def test_a_graph_that_is_still_read(self, clock):
        tracker = Tracker(clock)
        tracker.on_run(FakeEngine(), begun(keys=None))
        picture = tracker.picture()
        assert (picture.active, picture.reading, picture.total, picture.left) == (True, True, 0, None)
        assert line(picture).startswith("graphmill: reading the graph · 150 MB of 800 MB")

    def test_what_a_failed_run_has_not_done_is_not_waited_for(self, clock):
        tracker, log, engine = Tracker(clock), begun(), FakeEngine()
        tracker.on_run(engine, log)
        assert tracker.picture().total == 9
        log.tallies = {"load-1": Tally(2, 1.0)}
        log.losses = [Loss(("load-1", 2), 101.0, 0, "signal 9")]
        clock.now = 103.0
        log.ended = 103.0
        picture = tracker.picture()
        assert (picture.active, picture.done, picture.total, picture.left) == (False, 2, 2, None)
        assert (picture.elapsed, picture.deaths) == (3.0, 1)
        clock.now = 1000.0
        tracker.on_run(engine, begun(began=1000.0))
        clock.now = 1001.0
        picture = tracker.picture()
        assert (picture.done, picture.total, picture.elapsed) == (2, 11, 4.0)
        assert picture.rate == 0.0

    def test_rates_are_those_of_late(self, clock):
        tracker, log = Tracker(clock), begun()
        tracker.on_run(FakeEngine(), log)
        for _ in range(20):
            clock.now += 1.0
            log.tallies["load-1"] = Tally(int(clock.now - 100), 1.0)
            if clock.now > 110:
                log.tallies["load-1"].count += 9 * int(clock.now - 110)
            picture = tracker.picture()
        assert picture.rate == pytest.approx(10.0)

    def test_spilled_is_what_was_since_it_watches(self, clock):
        tracker, engine = Tracker(clock), FakeEngine()
        tracker.on_run(engine, begun())
        engine.now = glance(1.0, spilled=25 * MB)
        assert tracker.picture().spilled == 20 * MB
        engine.now = None  # closed
        assert tracker.picture().spilled == 20 * MB
        assert tracker.picture().peak == 150 * MB


FULL = Picture(
    active=True, done=1234, running=2, total=2000, elapsed=4.0, rate=412.3, left=1.9,
    kinds=(
        KindState("open_dataset", 144, 0, 144),
        KindState("a-very-long-name-of-a-kind-of-task", 120, 1, 144),
        KindState("sum", 0, 0, 700),
        *(KindState(f"kind{i}", 0, 0, 10) for i in range(8)),
        KindState("late", 5, 1, 10),
    ),
    memory=612 * MB, peak=700 * MB, limit=800 * MB, on_disk=MB, spilled=1200 * MB, workers=2, busy=2,
)  # fmt: skip


def text_of(rows, width):
    console = Console(
        file=io.StringIO(), width=width, force_terminal=True, color_system=None, highlight=False
    )
    console.print(Group(*rows))
    return console.file.getvalue().splitlines()


class TestTerminal:
    @pytest.mark.parametrize("width", [40, 80, 120, 200])
    def test_fits(self, width):
        limited = min(width, 120)
        rows = text_of([*head_rows(FULL, limited), *kind_rows(FULL, limited)], width)
        assert len(rows) == 9
        assert max(map(len, rows)) <= limited

    def test_says_all_at_80_columns(self):
        first, second, *kinds = text_of([*head_rows(FULL, 80), *kind_rows(FULL, 80)], 80)
        assert first.startswith("   61%   ━")
        assert first.endswith("1,234/2,000 tasks · 412/s · 1.9 s left")
        assert second.startswith("  memory ━")
        assert second.endswith("612 MB of 800 MB · spilled 1.2 GB · 2/2 workers busy")
        assert first.index("1,234") == second.index("612 MB")
        assert [row.split()[0] for row in kinds[:6]] == [
            "a-very-long-name-of-a-kind-…", "sum", "kind0", "kind1", "kind2", "late"
        ]  # fmt: skip
        assert "120/144  1 running, 23 waiting" in kinds[0]
        assert kinds[6].strip() == "✓ 1 kind done · 5 more kinds with 50 tasks"

    def test_bars(self):
        assert [bar(part, 4, "red").plain for part in (0, 0.13, 0.5, 0.99, 1, 1.5)] == [
            "────", "╸───", "━━──", "━━━╸", "━━━━", "━━━━"
        ]  # fmt: skip

    def test_is_shown_in_place_and_leaves_one_line(self):
        file = Terminal()
        shown = TerminalDisplay(file, width=80)
        shown.show(FULL)
        assert "1,234/2,000 tasks" in file.getvalue()
        shown.hide()
        shown.end(FULL, failed=False)
        last = file.getvalue().splitlines()[-1]
        assert last.endswith("1,234 tasks in 4.0 s · peak memory 700 MB of 800 MB · spilled 1.2 GB")
        assert "✓" in last
        assert file.getvalue().count("\x1b[?25h") == file.getvalue().count("\x1b[?25l") == 1  # the cursor


class TestLines:
    def test_come_seldom_where_nobody_looks(self, clock):
        file = io.StringIO()
        shown = LineDisplay(file, clock)
        for _ in range(601):
            shown.show(FULL)
            clock.now += 0.1
        lines = file.getvalue().splitlines()
        assert lines[0] == (
            "graphmill:  61% · 1,234/2,000 tasks · 412/s · 1.9 s left · 612 MB of 800 MB · spilled 1.2 GB"
            " · 2/2 workers busy"
        )
        assert 3 < len(lines) < 10
        shown.hide()
        shown.end(FULL, failed=True)
        assert file.getvalue().splitlines()[-1] == (
            "graphmill: failed after 1,234 tasks, 4.0 s · peak memory 700 MB of 800 MB · spilled 1.2 GB"
        )
        assert "\r" not in file.getvalue()

    def test_are_written_over_on_a_terminal(self, clock):
        file = Terminal()
        shown = LineDisplay(file, clock)
        shown.show(FULL)
        shown.show(Picture(active=True, reading=True))
        shown.end(FULL, failed=False)
        first, second, cleared, last = file.getvalue().split("\r")[1:]
        assert len(first) == 79
        assert second == "graphmill: reading the graph".ljust(79)
        assert not cleared.strip()
        assert last == f"graphmill: {last_line(FULL)}\n"


class TestChoice:
    def test_rich_on_a_terminal(self):
        assert type(display_for(Terminal())) is TerminalDisplay

    def test_lines_where_piped(self):
        assert type(display_for(io.StringIO())) is LineDisplay

    def test_lines_without_rich(self, monkeypatch):
        find = builtins.__import__

        def without(name, *rest):
            if name.startswith(("rich", "graphmill.diagnostics.terminal")):
                raise ImportError(name)
            return find(name, *rest)

        monkeypatch.setattr(builtins, "__import__", without)
        assert type(display_for(Terminal())) is LineDisplay

    def test_lines_on_a_dumb_terminal(self, monkeypatch):
        monkeypatch.setenv("TERM", "dumb")
        assert type(display_for(Terminal())) is LineDisplay


class TestNotebook:
    def test_names_are_escaped(self):
        picture = Picture(total=2, done=1, kinds=(KindState("<b>", 1, 0, 2),), limit=MB)
        html = notebook.progress_html(picture)
        assert "<b>" not in html
        assert "&lt;b&gt;" in html
        assert "width:50.0%" in html

    def test_an_engine(self):
        html = notebook.engine_html("engine", ["2 workers"], glance(0.0, private=80 * MB, spilled=MB))
        assert "80 MB of 800 MB" in html
        assert "1.0 MB in all" in html
        assert "80 MB" not in notebook.engine_html("engine", ["closed"], None)


class Kept:
    """A display that keeps what it is shown."""

    def __init__(self, lost=False):
        self.shown, self.ends, self.lost = [], [], lost
        self.first = threading.Event()

    def show(self, picture):
        self.shown.append(picture)
        self.first.set()
        if self.lost:
            raise BrokenPipeError

    def hide(self):
        pass

    def end(self, picture, *, failed):
        self.ends.append((picture, failed))


class TestProgress:
    def test_ends_with_its_block(self):
        kept, log = Kept(), begun()
        before = threading.active_count()
        with progress(display=kept) as shown:
            shown.on_run(FakeEngine(), log)
            assert kept.first.wait(30)
            log.tallies = {"load-1": Tally(4, 1.0)}
            log.end()
        assert threading.active_count() == before
        ((picture, failed),) = kept.ends
        assert (picture.done, failed) == (4, False)
        assert shown.picture == picture

    def test_says_so_where_it_failed(self):
        kept = Kept()

        def fail():
            with progress(display=kept) as shown:
                shown.on_run(FakeEngine(), begun())
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert kept.ends[0][1] is True

    def test_says_nothing_where_nothing_ran(self):
        kept = Kept()
        with progress(display=kept):
            pass
        assert (kept.shown, kept.ends) == ([], [])

    def test_a_closed_pipe_stops_nothing(self):
        kept = Kept(lost=True)
        with progress(display=kept) as shown:
            shown.on_run(FakeEngine(), begun())
            assert kept.first.wait(30)
        assert len(kept.shown) == 1
        assert not kept.ends


def test_kinds_of_all_runs_are_counted_once():
    assert begun().totals() == Counter({"load-1": 4, "sum-2": 4, ("total",): 1})
