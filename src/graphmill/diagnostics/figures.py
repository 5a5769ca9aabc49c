"""The pictures of a report over time, drawn with bokeh: workers, concurrency, memory.

All ground is left clear, and text is given its colour by the page, which knows whether it is light or dark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import bokeh.models
import numpy as np
from bokeh.plotting import figure
from bokeh.transform import linear_cmap

from graphmill.diagnostics.amounts import COLOURS, OTHER, of_bytes
from graphmill.diagnostics.kinds import Bar, concurrency, label_of, overview
from graphmill.diagnostics.log import Outcome
from graphmill.diagnostics.records import Recording, TaskRecord

#: What bokeh generates its signatures from, type checkers cannot follow.
models: Any = bokeh.models

#: Colours of what memory is used for, from the bottom up.
MEMORY = {
    "private": ("#8b93a1", "private memory of processes"),
    "live": ("#4e86c6", "results that are needed"),
    "work": ("#2fb3b3", "what tasks work with"),
    "warm": ("#ecc766", "kept warm for the next ones"),
}
LIMIT = "#e0605a"
SPILLED = "#b94fd1"
#: Pieces into which time is cut where tasks are counted.
BINS = 600
#: How many bars are drawn at a time; where there are more, short ones are put together until one zooms in.
MOST_BARS = 20_000
#: Into how many pieces time is cut for that at least, however many workers there are.
LEAST_CELLS = 150

_FORMATS_JS = """
function bytes(n) {
  for (const [size, unit] of [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]])
    if (Math.abs(n) >= size * 0.9995) return (n / size).toFixed(Math.abs(n) < 10 * size ? 1 : 0) + " " + unit;
  return n.toFixed(0) + " B";
}
function seconds(s) {
  if (s >= 59.5) {
    const whole = Math.round(s), two = (n) => String(n).padStart(2, "0");
    const h = Math.floor(whole / 3600), m = Math.floor(whole / 60) % 60;
    return (h ? h + ":" + two(m) : m) + ":" + two(whole % 60);
  }
  for (const [size, unit] of [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]])
    if (s >= size * 0.9995) return (s / size).toFixed(s < 10 * size ? 1 : 0) + " " + unit;
  return "0 s";
}
"""
_TOOLS = "xpan,xwheel_zoom,xbox_zoom,reset"


def hover_js(function: str) -> Any:
    """Have a column be written by a function of the page: `bytes` or `seconds`."""
    return models.CustomJSHover(code=f"{_FORMATS_JS}\nreturn {function}(value);")


def kind_js(kinds: Sequence[str]) -> Any:
    """Have a column of numbers be written as kinds."""
    return models.CustomJSHover(args={"kinds": list(kinds)}, code="return kinds[value];")


def _figure(height: int, x_range: Any, **options: Any) -> Any:
    """Make a figure over time, as wide as there is room."""
    plot = figure(
        height=height,
        sizing_mode="stretch_width",
        tools=_TOOLS,
        active_drag="xbox_zoom",
        output_backend="webgl",
        min_border_left=84,
        min_border_right=16,
        x_range=x_range,
        **options,
    )
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    plot.background_fill_color = plot.border_fill_color = plot.outline_line_color = None
    plot.xaxis.formatter = models.CustomJSTickFormatter(
        code="""
const span = Math.abs(ticks[ticks.length - 1] - ticks[0]);
if (span < 1e-3) return (tick * 1e6).toFixed(0) + " µs";
if (span < 0.5) return (tick * 1e3).toFixed(span < 0.01 ? 1 : 0) + " ms";
if (tick < 60) return tick.toFixed(span < 5 ? 1 : 0) + " s";
const two = (n) => String(n).padStart(2, "0"), whole = Math.floor(tick);
const h = Math.floor(whole / 3600), m = Math.floor(whole / 60) % 60;
return (h ? h + ":" + two(m) : m) + ":" + two(whole % 60);
"""
    )
    plot.ygrid.grid_line_color = None
    return plot


def time_range(recording: Recording) -> Any:
    """Make the range of time that all pictures of a recording share."""
    start, end = recording.start, recording.end
    end = max([end, *(task.end for task in recording.tasks), start + 1e-3])
    margin = (end - start) / 100
    return models.Range1d(start - margin, end + margin, bounds=(start - (end - start), end + (end - start)))


def lanes(recording: Recording, pieces: Sequence[Bar], kinds: Sequence[str], x_range: Any) -> Any:
    """Draw what each worker did when."""
    workers = sorted({bar.worker for bar in pieces} | set(range(recording.workers)))
    # The caller's own process is the last line, not the first.
    order = [worker for worker in workers if worker >= 0] + [worker for worker in workers if worker < 0]
    lane = {worker: len(order) - 1 - at for at, worker in enumerate(order)}
    height = max(90, min(26 * len(order), 640)) + 40
    plot = _figure(height, x_range, y_range=models.Range1d(-0.6, len(order) - 0.4))
    plot.yaxis.ticker = models.FixedTicker(ticks=list(range(len(order))))
    names = {at: f"worker {worker}" if worker >= 0 else "caller" for worker, at in lane.items()}
    if len(order) > 48:  # noqa: PLR2004 - names would overlap
        names = {at: name for at, name in names.items() if at % 8 == (len(order) - 1) % 8}
    plot.yaxis.major_label_overrides = {**dict.fromkeys(range(len(order)), ""), **names}
    plot.yaxis.major_tick_line_color = None
    all_data = _lane_data(pieces, lane, kinds)
    source = models.ColumnDataSource(all_data)
    if len(pieces) > MOST_BARS:
        cells = max(LEAST_CELLS, MOST_BARS // (len(order) * min(len(kinds), 8)))
        few = _lane_data(overview(pieces, kinds, cells), lane, kinds)
        source.data = few
        _zoom_in(x_range, source, few, all_data)
    palette = [colour_of(at) for at in range(len(kinds))]
    drawn = plot.quad(
        "left",
        "right",
        "top",
        "bottom",
        source=source,
        line_color=None,
        fill_color=linear_cmap("kind", palette, -0.5, len(kinds) - 0.5),
        hover_fill_alpha=0.6,
    )
    plot.add_tools(
        models.HoverTool(
            renderers=[drawn],
            point_policy="follow_mouse",
            tooltips="""<div class="tip"><b>@kind{custom}</b><br>@key<br>
took @long{custom}, from @left{custom}<br>result @out{custom} · inputs @in{custom}</div>""",
            formatters={
                "@kind": kind_js(kinds),
                "@long": hover_js("seconds"),
                "@left": hover_js("seconds"),
                "@out": hover_js("bytes"),
                "@in": hover_js("bytes"),
            },
        )
    )
    _mark(plot, *_troubles(recording, pieces, lane))
    return plot


def _lane_data(pieces: Sequence[Bar], lane: Mapping[int, int], kinds: Sequence[str]) -> dict[str, Any]:
    number = {kind: at for at, kind in enumerate(kinds)}
    floor = np.array([lane[bar.worker] - 0.42 for bar in pieces], dtype=np.float32)
    return {
        "left": np.array([bar.start for bar in pieces]),
        "right": np.array([bar.end for bar in pieces]),
        "top": floor + np.array([0.84 * bar.high for bar in pieces], dtype=np.float32),
        "bottom": floor + np.array([0.84 * bar.low for bar in pieces], dtype=np.float32),
        "kind": np.array([number[bar.kind] for bar in pieces], dtype=np.int32),
        "long": np.array([bar.seconds for bar in pieces], dtype=np.float32),
        "out": np.array([bar.output_bytes for bar in pieces], dtype=np.float32),
        "in": np.array([bar.input_bytes for bar in pieces], dtype=np.float32),
        "key": [bar.label for bar in pieces],
    }


def _zoom_in(x_range: Any, shown: Any, few: dict[str, Any], every: dict[str, Any]) -> None:
    """Have each task be drawn as soon as so little is looked at that all of them can be."""
    code = """
clearTimeout(window[timer]);
window[timer] = setTimeout(() => {
  const left = every.data.left, right = every.data.right, inside = [];
  for (let i = 0; i < left.length && inside.length <= most; i++)
    if (right[i] >= x_range.start && left[i] <= x_range.end) inside.push(i);
  if (inside.length > most) {
    if (shown.tags.length) shown.setv({tags: [], data: few.data});
    return;
  }
  const data = {};
  for (const [name, column] of Object.entries(every.data)) data[name] = inside.map((i) => column[i]);
  const all = keys.split("\\n");
  data.key = inside.map((i) => all[i]);
  shown.setv({tags: ["every"], data});
}, 80);
"""
    keys = "\n".join(key.replace("\n", " ") for key in every.pop("key"))  # one text is read faster than many
    arguments: dict[str, Any] = {"x_range": x_range, "shown": shown, "keys": keys, "most": MOST_BARS}
    arguments |= {"few": models.ColumnDataSource(few), "every": models.ColumnDataSource(every)}
    callback = models.CustomJS(args={**arguments, "timer": f"graphmill-{shown.id}"}, code=code)
    x_range.js_on_change("start", callback)
    x_range.js_on_change("end", callback)


def colour_of(at: int) -> str:
    """Get the colour of a kind by its rank."""
    return COLOURS[at] if at < len(COLOURS) else OTHER


def _troubles(
    recording: Recording, pieces: Sequence[Bar], lane: Mapping[int, int]
) -> tuple[list[float], list[int], list[str]]:
    """Find what went otherwise than it should: when, on which line, and what to say of it."""
    said = {
        Outcome.FAILED.value: "raised an exception",
        Outcome.REFUSED.value: "needed more memory than it was given; run again with more",
        Outcome.STAYED.value: "cannot be sent; run in the caller's process",
    }
    found = [
        (bar.end, lane[bar.worker], f"{bar.label} {said[bar.outcome]}")
        for bar in pieces
        if bar.outcome in said
    ]
    found += [
        (death.time, lane[death.worker], f"worker died ({death.cause}) while it ran {label_of(death.key)}")
        for death in recording.deaths
    ]
    return [each[0] for each in found], [each[1] for each in found], [each[2] for each in found]


def _mark(plot: Any, times: Sequence[float], heights: Sequence[float], texts: Sequence[str]) -> None:
    if not times:
        return
    source = models.ColumnDataSource({"x": list(times), "y": list(heights), "text": list(texts)})
    drawn = plot.scatter(
        "x", "y", source=source, marker="triangle", size=11, color=LIMIT, line_color="white", line_width=1
    )
    plot.add_tools(models.HoverTool(renderers=[drawn], tooltips="<div class='tip'>@text</div>"))


def _level(height: float) -> Any:
    """Make the line that is not to be passed."""
    return models.Span(location=height, line_color=LIMIT, line_width=2, line_dash="dashed", dimension="width")


def running(recording: Recording, kinds: Sequence[str], x_range: Any) -> Any:
    """Draw how many tasks ran at a time, by kind."""
    shown = [kind for at, kind in enumerate(kinds) if colour_of(at) != OTHER]
    by_kind: dict[str, list[TaskRecord]] = {kind: [] for kind in shown}
    others: list[TaskRecord] = []
    for task in recording.tasks:
        by_kind.get(task.kind, others).append(task)
    data: dict[str, Any] = {}
    total = np.zeros(BINS)
    for at, tasks in enumerate([*by_kind.values(), others]):
        edges, count = concurrency(tasks, x_range.start, x_range.end, BINS)
        data[f"k{at}"] = np.repeat(count, 2).astype(np.float32)
        total += count
    data["x"] = np.repeat(edges, 2)[1:-1]
    data["total"] = np.repeat(total, 2)
    source = models.ColumnDataSource(data)
    top = max(float(total.max(initial=0)), float(recording.workers), 1.0)
    plot = _figure(150, x_range, y_range=models.Range1d(0, top * 1.12))
    layers = [f"k{at}" for at in range(len(shown) + 1)]
    colour = [colour_of(at) for at in range(len(shown))] + [OTHER]
    plot.varea_stack(layers, x="x", source=source, color=colour, fill_alpha=0.9)
    line = plot.line("x", "total", source=source, line_color=None, line_alpha=0)
    plot.add_layout(
        models.Span(location=recording.workers, line_color=LIMIT, line_dash="dashed", dimension="width")
    )
    plot.add_tools(
        models.HoverTool(
            renderers=[line],
            mode="vline",
            line_policy="nearest",
            tooltips="<div class='tip'><b>@x{custom}</b><br>@total{0.0} tasks at a time</div>",
            formatters={"@x": hover_js("seconds")},
        )
    )
    plot.yaxis.ticker.mantissas = [1, 2, 5]
    plot.yaxis.ticker.min_interval = 1
    return plot


def memory(recording: Recording, x_range: Any) -> Any:
    """Draw what memory was used for over time, against the limit."""
    samples = recording.memory
    data = {
        "x": np.array([sample.time for sample in samples]),
        "private": np.array([sample.private for sample in samples], dtype=np.float64),
        "live": np.array([sample.live for sample in samples], dtype=np.float64),
        "work": np.array([max(0, s.arenas - s.live - s.warm) for s in samples], dtype=np.float64),
        "warm": np.array([min(s.warm, max(0, s.arenas - s.live)) for s in samples], dtype=np.float64),
        "total": np.array([sample.total for sample in samples], dtype=np.float64),
        "disk": np.array([sample.on_disk for sample in samples], dtype=np.float64),
    }
    source = models.ColumnDataSource(data)
    limit = samples[-1].limit if samples else 0
    top = max(float(np.max(data["total"], initial=0)), float(np.max(data["disk"], initial=0)), 1.0)
    # A limit far above all that was used would press everything to the ground.
    shows_limit = limit <= 3 * top
    plot = _figure(260, x_range, y_range=models.Range1d(0, 1.1 * max(top, limit if shows_limit else 0)))
    plot.yaxis.formatter = models.CustomJSTickFormatter(code=f"{_FORMATS_JS}\nreturn bytes(tick);")
    plot.varea_stack(
        list(MEMORY), x="x", source=source, color=[colour for colour, _ in MEMORY.values()], fill_alpha=0.9
    )
    plot.line("x", "disk", source=source, line_color=SPILLED, line_width=2)
    line = plot.line("x", "total", source=source, line_color="#6b7280", line_width=1)
    if shows_limit and limit:
        plot.add_layout(_level(limit))
    plot.add_tools(
        models.HoverTool(
            renderers=[line],
            mode="vline",
            tooltips=f"""<div class="tip"><b>@x{{custom}}</b> · @total{{custom}} of {of_bytes(limit)}<br>
needed @live{{custom}} · at work @work{{custom}}<br>warm @warm{{custom}} · private @private{{custom}}<br>
on disk @disk{{custom}}</div>""",
            formatters={"@x": hover_js("seconds")}
            | {f"@{name}": hover_js("bytes") for name in ("total", "disk", *MEMORY)},
        )
    )
    _mark_spills(plot, recording)
    return plot


def _mark_spills(plot: Any, recording: Recording) -> None:
    if not recording.spills:
        return
    times = [sample.time for sample in recording.memory]
    totals = [float(sample.total) for sample in recording.memory]
    when = [spill.time for spill in recording.spills]
    source = models.ColumnDataSource(
        {
            "x": when,
            "y": np.interp(when, times, totals) if times else np.zeros(len(when)),
            "key": [label_of(spill.key) for spill in recording.spills],
            "nbytes": [float(spill.nbytes) for spill in recording.spills],
            "seconds": [spill.seconds for spill in recording.spills],
        }
    )
    drawn = plot.scatter(
        "x", "y", source=source, marker="inverted_triangle", size=7, color=SPILLED, alpha=0.7
    )
    plot.add_tools(
        models.HoverTool(
            renderers=[drawn],
            tooltips="<div class='tip'>@nbytes{custom} to disk in @seconds{custom}<br>@key</div>",
            formatters={"@nbytes": hover_js("bytes"), "@seconds": hover_js("seconds")},
        )
    )
