"""The report, opened in a browser where there is one."""

import builtins

import pytest

from graphmill.diagnostics import figures
from graphmill.diagnostics.log import CALLER, Entry, Outcome, RunLog
from graphmill.diagnostics.records import Recording, record_runs
from graphmill.diagnostics.report import render_report, write_report
from graphmill.errors import MissingExtra

#: How many plots have something drawn on their canvas.
DRAWN = """[...Bokeh.index.roots].filter((view) => view.canvas_view).filter((view) => {
  const canvas = view.canvas_view.primary.canvas;
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return pixels.some((value) => value > 0);
}).length"""
#: The place on the page of a point of the first plot, of the worker's lines.
PLACE = """(() => {
  const view = [...Bokeh.index.roots][0], frame = view.frame;
  const box = view.el.getBoundingClientRect();
  return [box.x + frame.x_scale.compute(%f), box.y + frame.y_scale.compute(%f)];
})()"""
TIP = """(() => {
  const found = [];
  const look = (node) => {
    if (node.shadowRoot) look(node.shadowRoot);
    for (const child of node.children ?? []) {
      if (child.classList?.contains("tip")) found.push(child.innerText);
      look(child);
    }
  };
  look(document.body);
  return found.filter(Boolean).join("|");
})()"""


@pytest.fixture
def opened(browser, tmp_path):
    """Write a report and open it; gives the browser."""

    def make(recordings, *, dark=False):
        page = tmp_path / "report.html"
        write_report(recordings, page)
        browser.begin(dark=dark)
        browser.open(page.as_uri())
        browser.wait_for("document.documentElement.dataset.ready")
        return browser

    return make


@pytest.mark.parametrize("dark", [False, True])
def test_all_is_drawn(recording, opened, dark):
    browser = opened([recording], dark=dark)
    assert browser.wait_for(f"{DRAWN} === 4")
    assert browser.errors == []
    assert all(url.startswith(("file:", "data:")) for url in browser.requests)
    axis = browser.evaluate("[...Bokeh.documents[0].all_models].find((m) => m.type === 'LinearAxis')"
                            ".major_label_text_color")  # fmt: skip
    assert axis == ("#98a2b3" if dark else "#667085")


def test_a_hover_tells_key_and_sizes(recording, opened):
    browser = opened([recording])
    browser.wait_for(f"{DRAWN} === 4")
    # Lines are, from the top: worker 0, worker 1, caller. Worker 1 has loaded a block from 1.5 s on.
    x, y = browser.evaluate(PLACE % (2.0, 1.0))
    browser.move_to(x - 2, y)
    browser.move_to(x, y)
    text = browser.wait_for(TIP)
    assert "load" in text
    assert "load-1a (1)" in text
    assert "took 1.0 s, from 1.5 s" in text
    assert "result 8.0 MB" in text
    assert browser.errors == []


def test_tasks_are_drawn_one_by_one_where_one_zooms_in(opened, monkeypatch):
    monkeypatch.setattr(figures, "MOST_BARS", 200)
    entries = [Entry(("x-1", i), i % 2, i * 0.01, 0.009, 0, 0, 0, Outcome.DONE) for i in range(1000)]
    log = RunLog(entries=entries, began=0.0, ended=10.0, keys=[entry.key for entry in entries])
    browser = opened([record_runs(2, [log], [], 0.0)])
    browser.wait_for(f"{DRAWN} >= 2")
    shown = """[...Bokeh.documents[0].all_models].find((m) => m.type === "GlyphRenderer"
        && m.glyph.type === "Quad").data_source"""
    assert browser.evaluate(f"{shown}.data.left.length") == 300
    browser.evaluate("""void [...Bokeh.documents[0].all_models].find((m) => m.type === "Range1d"
        && m.bounds !== null).setv({start: 5, end: 5.5})""")
    keys = browser.wait_for(f"{shown}.tags.length && [...{shown}.data.key]")
    assert "x-1 (524)" in keys
    assert len(keys) == pytest.approx(51, abs=1)
    assert browser.errors == []


def test_several_engines(recording, opened):
    browser = opened([recording, recording])
    assert browser.wait_for(f"{DRAWN} === 8")
    assert (
        browser.evaluate(
            "[...document.querySelectorAll('h2')].filter((h) => /^Engine/.test(h.innerText)).length"
        )
        == 2
    )
    assert browser.errors == []


def test_what_is_said(recording):
    page = render_report([recording])
    for said in ("224 MB", "peak of 800 MB", "load", "sum", "total", "1 spill", "1 death", "2 + 1 again"):
        assert said in page, said


def test_names_cannot_break_the_page():
    name = "</script><b onclick='x'>"
    entries = [Entry((name, i), CALLER, 0.0, 1.0, 0, 0, 0, Outcome.DONE) for i in range(2)]
    page = render_report([record_runs(1, [RunLog(entries=entries, began=0.0, ended=1.0)], [], 0.0)])
    assert name not in page


def test_engines_without_tasks_are_left_out(recording, tmp_path):
    write_report([Recording(2), recording], tmp_path / "report.html")
    assert "Engine 2" not in (tmp_path / "report.html").read_text()


def test_without_bokeh(recording, monkeypatch):
    find = builtins.__import__

    def without(name, *rest):
        if name.startswith("bokeh"):
            raise ImportError(name)
        return find(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"pip install 'graphmill\[ui\]'"):
        render_report([recording])
