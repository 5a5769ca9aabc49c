"""The live page: what it is told, who may ask, and that it ends with its owner."""

import http.client
import json
import socket
import threading
from urllib.parse import urlsplit

import pytest

from graphmill.diagnostics import dashboard, watch
from graphmill.diagnostics.live import MANY, LiveState
from tests.diagnostics.conftest import MB, done, glance


class FakeEngine:
    num_workers = 2
    recorder = None
    closed = False

    def __init__(self):
        self.now = glance(100.0, private=100 * MB, arenas=60 * MB, live=40 * MB, warm=10 * MB, busy=2)

    def glance(self):
        return self.now


@pytest.fixture
def page():
    before = set(threading.enumerate())
    with dashboard() as made:
        yield made
    assert set(threading.enumerate()) == before


def ask(page, path="", *, method="GET", **headers):
    address = urlsplit(page.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
    try:
        connection.request(method, path if path.startswith("/") else address.path + path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


class TestState:
    def test_tells_what_is_new(self, log):
        state, entries = LiveState(), log.entries
        log.entries, log.ended = entries[:3], None
        state.on_run(FakeEngine(), log)
        state.look()
        told = json.loads(json.dumps(state.state(-1, 0.0)))
        assert [bar["label"] for bar in told["bars"]] == ["load-1a (0)", "load-1a (1)", "load-1a (1)"]
        assert [bar["bad"] for bar in told["bars"]] == [False, True, False]
        assert (told["done"], told["total"], told["workers"], told["deaths"]) == (2, 5, 2, 1)
        (memory,) = told["glances"]
        assert memory == {
            "time": 100.0, "private": 100 * MB, "live": 40 * MB, "work": 10 * MB, "warm": 10 * MB, "disk": 0
        }  # fmt: skip
        log.entries, log.ended = entries, 103.0
        state.look()
        more = state.state(told["next"], memory["time"])
        assert [bar["label"] for bar in more["bars"]] == ["sum-2b (0)", "sum-2b (1)", "total-3c"]
        assert more["glances"] == []
        state.look()
        assert state.state(more["next"], 0.0)["bars"] == []

    def test_many_short_tasks_are_put_together(self, log):
        state = LiveState()
        log.entries = [done(("x-1", i), i % 2, 100.0 + i / 1000, 0.001) for i in range(2 * MANY)]
        state.on_run(FakeEngine(), log)
        state.look()
        assert len(state.state(-1, 0.0)["bars"]) == 16


class TestServer:
    def test_serves_page_and_state(self, page, log):
        watch.begin_log(FakeEngine())
        status, headers, content = ask(page)
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert b"/* script */" not in content
        status, headers, content = ask(page, "state?after=-1&since=0")
        assert (status, headers["Cache-Control"]) == (200, "no-store")
        assert json.loads(content)["bars"] == []

    @pytest.mark.parametrize("path", ["/", "/wrong/", "/wrong/state?after=-1&since=0", "other", "state/more"])
    def test_others_find_nothing(self, page, path):
        assert ask(page, path)[0] == 404

    def test_other_names_for_this_machine_are_not_answered(self, page):
        assert ask(page, Host="evil.example")[0] == 404

    @pytest.mark.parametrize("query", ["", "?after=x&since=0", "?after=1"])
    def test_bad_questions(self, page, query):
        assert ask(page, "state" + query)[0] == 400

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
    def test_changes_nothing(self, page, method):
        assert ask(page, method=method)[0] == 501

    def test_listens_on_this_machine_only(self, page):
        assert urlsplit(page.url).hostname == "127.0.0.1"
        assert len(urlsplit(page.url).path) > 30

    def test_a_port_that_is_taken(self, page):
        with pytest.raises(OSError, match="use"):
            dashboard(urlsplit(page.url).port)

    def test_ends_though_a_browser_keeps_a_connection(self):
        with dashboard() as page:
            address = urlsplit(page.url)
            idle = socket.create_connection((address.hostname, address.port))
            assert ask(page)[0] == 200
        page.close()
        with idle:
            assert idle.recv(1) == b""
        with pytest.raises(OSError):  # noqa: PT011 - whatever the system says of it
            ask(page)


@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser(page, log, browser, dark):
    engine = FakeEngine()
    log.ended = None
    page._state.on_run(engine, log)
    browser.begin(dark=dark)
    browser.open(page.url)
    browser.wait_for("document.documentElement.dataset.ready")
    assert browser.wait_for("document.querySelectorAll('#kinds tr').length === 3")
    for name in ("lanes", "memory"):
        assert browser.evaluate(
            f"""(() => {{ const canvas = document.getElementById("{name}");
            return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data
                .some((value) => value > 0); }})()"""
        )
    assert "of 5 tasks" in browser.evaluate("document.getElementById('tiles').innerText")
    assert browser.errors == []
    assert all(url.startswith(page.url) for url in browser.requests)
    page.close()
    assert browser.wait_for("document.getElementById('status').className === 'lost'")
