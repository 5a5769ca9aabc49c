"""`dashboard`: a page that shows runs while they go on, served to browsers on this machine.

It listens on 127.0.0.1 only, answers only who knows the random token in its address, and changes nothing. It
is there as long as its owner keeps it open.

Knows trackers, logs and glances.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from graphmill.diagnostics.amounts import COLOURS, OTHER
from graphmill.diagnostics.kinds import Bar, label_of, overview
from graphmill.diagnostics.log import Entry, Outcome, RunLog, kind_of
from graphmill.diagnostics.pages import page_part
from graphmill.diagnostics.sampler import Ticker
from graphmill.diagnostics.tracker import Picture, Tracker
from graphmill.diagnostics.watch import Glance, Watched, unwatch, watch
from graphmill.scheduler.estimates import batch_of

#: Seconds from one look to the next, and the part of the time that looks may take.
INTERVAL = 0.2
SHARE = 0.02
#: How many seconds pages show, and how many bars and looks at memory are kept for those that come later.
WINDOW = 60.0
MOST_BARS = 20_000
MOST_GLANCES = 600
#: More tasks than this between two looks are put together, into so many pieces of time.
MANY, CELLS = 400, 8
#: Seconds that a browser may take to say what it wants.
PATIENCE = 5.0


class LiveState:
    """What pages are shown: collects it, and writes it down as JSON."""

    #: See `Watcher`.
    wants_entries = True

    def __init__(self) -> None:
        self._tracker = Tracker()
        self._lock = threading.Lock()
        self._engine: Watched | None = None
        self._logs: list[tuple[RunLog, int]] = []
        self._bars: deque[tuple[int, Bar]] = deque(maxlen=MOST_BARS)
        self._next = 0
        self._glances: deque[Glance] = deque(maxlen=MOST_GLANCES)
        self._kinds: dict[str, int] = {}
        self._picture = Picture()

    def on_run(self, engine: Watched, log: RunLog) -> None:
        """Take in that a run begins; see `Watcher`."""
        self._tracker.on_run(engine, log)
        with self._lock:
            self._engine = engine
            self._logs.append((log, 0))

    def look(self) -> None:
        """Take in what has happened since the last look."""
        with self._lock:
            self._picture = self._tracker.picture()
            glance = None if self._engine is None else self._engine.glance()
            if glance is not None:
                self._glances.append(glance)
            logs = []
            for log, seen in self._logs:
                over = log.ended is not None  # asked first: what ends after is seen next time
                new = log.all_entries()[seen:]
                self._add(new)
                if not over:
                    logs.append((log, seen + len(new)))
            self._logs = logs

    def _add(self, entries: Sequence[Entry]) -> None:
        made = [_bar_of(entry) for entry in entries]
        for bar in made:
            self._kinds.setdefault(bar.kind, len(self._kinds))
        if len(made) > MANY:
            made = overview(made, list(self._kinds), CELLS)
        for bar in made:
            self._bars.append((self._next, bar))
            self._next += 1

    def let_go(self) -> None:
        """Know no engine any more."""
        self._tracker.let_go()
        with self._lock:
            self._engine = None

    def state(self, after: int, since: float) -> dict[str, Any]:
        """Tell all, of bars and memory only what a page does not have yet.

        Parameters
        ----------
        after
            The number of the last bar that it has; -1 for none.
        since
            When the last look at memory was that it has, in seconds of `time.perf_counter`.
        """
        with self._lock:
            picture, kinds = self._picture, self._kinds
            return {
                "now": time.perf_counter(),
                "next": self._next - 1,
                "workers": picture.workers,
                "busy": picture.busy,
                "active": picture.active,
                "reading": picture.reading,
                "done": picture.done,
                "running": picture.running,
                "waiting": picture.waiting,
                "total": picture.total,
                "elapsed": picture.elapsed,
                "rate": picture.rate,
                "left": picture.left,
                "memory": picture.memory,
                "peak": picture.peak,
                "limit": picture.limit,
                "on_disk": picture.on_disk,
                "spilled": picture.spilled,
                "deaths": picture.deaths,
                "kinds": [
                    {
                        "kind": each.kind,
                        "done": each.done,
                        "running": each.running,
                        "total": each.total,
                        "colour": _colour(kinds.get(each.kind)),
                    }
                    for each in picture.kinds
                ],
                "bars": [_bar_row(bar, kinds) for number, bar in self._bars if number > after],
                "glances": [_glance_row(each) for each in self._glances if each.time > since],
            }


def _bar_of(entry: Entry) -> Bar:
    return Bar(
        entry.worker,
        kind_of(batch_of(entry.key)),
        entry.began,
        entry.began + entry.seconds,
        label_of(entry.key),
        entry.seconds,
        entry.nbytes,
        0,
        entry.outcome.value,
    )


def _bar_row(bar: Bar, kinds: dict[str, int]) -> dict[str, Any]:
    return {
        "worker": bar.worker,
        "kind": bar.kind,
        "colour": _colour(kinds[bar.kind]),
        "start": bar.start,
        "end": bar.end,
        "low": bar.low,
        "high": bar.high,
        "label": bar.label,
        "seconds": bar.seconds,
        "bytes": bar.output_bytes,
        "bad": bar.outcome != Outcome.DONE.value,
    }


def _glance_row(glance: Glance) -> dict[str, float]:
    live = glance.live - glance.on_disk
    return {
        "time": glance.time,
        "private": glance.private,
        "live": live,
        "work": max(0, glance.arenas - live - glance.warm),
        "warm": min(glance.warm, max(0, glance.arenas - live)),
        "disk": glance.on_disk,
    }


def _colour(rank: int | None) -> str:
    return OTHER if rank is None or rank >= len(COLOURS) else COLOURS[rank]


def live_page() -> bytes:
    """Make the page, which asks for all else by itself."""
    page = page_part("live.html").replace("/* style */", page_part("style.css"))
    return page.replace("/* script */", page_part("live.js")).encode()


class _Server(ThreadingHTTPServer):
    """Serves one state to who knows the token."""

    daemon_threads = False  # they are waited for

    def __init__(self, state: LiveState, port: int) -> None:
        self.state = state
        self.token = secrets.token_urlsafe(24)
        self.page = live_page()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer on a connection, which can be cut meanwhile."""
        with self._lock:
            self._open.add(request)
        try:
            super().finish_request(request, client_address)
        except OSError:
            pass  # the browser has gone
        finally:
            with self._lock:
                self._open.discard(request)

    def close(self) -> None:
        """Answer nobody any more: cut connections, and wait for their threads."""
        self.shutdown()
        with self._lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # gone by itself
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = PATIENCE
    #: Nothing but what the page itself has, and what it asks this server for.
    _POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"

    def do_GET(self) -> None:
        """Answer with the page, or with the state."""
        address = urlsplit(self.path)
        _, token, *rest = address.path.split("/")
        port = self.server.server_address[1]
        # Another name for this machine would be another site's, made to point here.
        known = self.headers.get("Host") in (f"127.0.0.1:{port}", f"localhost:{port}")
        if not known or not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self.send_error(HTTPStatus.NOT_FOUND)
        elif rest == [""]:
            self._answer("text/html; charset=utf-8", self.server.page)
        elif rest == ["state"]:
            asked = parse_qs(address.query)
            try:
                after, since = int(asked["after"][0]), float(asked["since"][0])
            except (KeyError, ValueError):
                self.send_error(HTTPStatus.BAD_REQUEST)
                return
            state = self.server.state.state(after, since)
            self._answer("application/json", json.dumps(state, separators=(",", ":")).encode())
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _answer(self, kind: str, content: bytes) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", self._POLICY)
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's
        """Say nothing: the terminal is the user's."""


class dashboard:  # noqa: N801 - read as the function that it is used as
    """Serve a page that shows all runs within a block of code, while they go on.

    Parameters
    ----------
    port : int, optional
        Where it listens on 127.0.0.1; by default where there is room.

    Attributes
    ----------
    url : str
        The page's address, with the token that it is kept by: who has it can look, and nobody else.

    Raises
    ------
    OSError
        If somebody else listens there.

    Examples
    --------
    >>> from graphmill.diagnostics import dashboard
    >>> with dashboard() as page:  # doctest: +SKIP
    ...     print(page.url)
    ...     x.mean().compute(scheduler=graphmill.get)
    """

    def __init__(self, port: int = 0) -> None:
        self._state = LiveState()
        self._server = _Server(self._state, port)
        self._ticker = Ticker(self._state.look, INTERVAL, SHARE)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="graphmill-dashboard", daemon=True
        )
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/{self._server.token}/"
        self._closed = False
        self._thread.start()
        watch(self._state)
        self._ticker.start()

    def close(self) -> None:
        """Serve it no more; may be called again."""
        if self._closed:
            return
        self._closed = True
        unwatch(self._state)
        self._ticker.stop()
        self._server.close()
        self._thread.join()
        self._state.let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
