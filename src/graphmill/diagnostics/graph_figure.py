"""The picture of a report that shows a graph, where it is small enough, drawn with bokeh."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bokeh.plotting import figure

from graphmill.diagnostics.drawing import place_tasks
from graphmill.diagnostics.figures import colour_of, hover_js, models
from graphmill.diagnostics.kinds import label_of
from graphmill.diagnostics.log import Outcome
from graphmill.diagnostics.records import Recording, TaskRecord

#: The largest graph that is drawn, in tasks.
LARGEST_GRAPH = 400


def graph(recording: Recording, kinds: Sequence[str]) -> Any:
    """Draw the graph of the largest run that can be drawn; None if there is none."""
    runs: dict[int, dict[Any, TaskRecord]] = {}
    for task in recording.tasks:
        if task.outcome == Outcome.DONE.value:
            runs.setdefault(task.run, {})[task.key] = task
    small = [(len(tasks), run) for run, tasks in runs.items() if 1 < len(tasks) <= LARGEST_GRAPH]
    if not small:
        return None
    run = max(small)[1]
    tasks, needs = runs[run], recording.dependencies[run]
    place = place_tasks(list(tasks), needs)
    rows = 1 + max(y for _, y in place.values()) - min(y for _, y in place.values())
    plot = figure(
        height=int(min(640, max(160, 40 + 16 * rows))),
        sizing_mode="stretch_width",
        tools="pan,wheel_zoom,box_zoom,reset",
        active_drag="pan",
    )
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    plot.axis.visible = plot.grid.visible = False
    plot.background_fill_color = plot.border_fill_color = plot.outline_line_color = None
    lines = [(place[dep], place[key]) for key in tasks for dep in needs.get(key, ()) if dep in place]
    plot.segment(
        [a[0] for a, _ in lines],
        [a[1] for a, _ in lines],
        [b[0] for _, b in lines],
        [b[1] for _, b in lines],
        line_color="#9aa1ad",
        line_alpha=0.5,
    )
    longest = max(task.seconds for task in tasks.values()) or 1.0
    number = {kind: at for at, kind in enumerate(kinds)}
    source = models.ColumnDataSource(
        {
            "x": [place[key][0] for key in tasks],
            "y": [place[key][1] for key in tasks],
            "size": [7 + 13 * math.sqrt(task.seconds / longest) for task in tasks.values()],
            "colour": [colour_of(number[task.kind]) for task in tasks.values()],
            "kind": [task.kind for task in tasks.values()],
            "key": [label_of(key) for key in tasks],
            "long": [task.seconds for task in tasks.values()],
            "out": [float(task.output_bytes) for task in tasks.values()],
            "in": [float(task.input_bytes) for task in tasks.values()],
            "where": [f"worker {t.worker}" if t.worker >= 0 else "caller" for t in tasks.values()],
        }
    )
    drawn = plot.scatter("x", "y", size="size", color="colour", line_color="white", source=source)
    plot.add_tools(
        models.HoverTool(
            renderers=[drawn],
            tooltips="""<div class="tip"><b>@kind</b><br>@key<br>took @long{custom} on @where<br>
result @out{custom} · inputs @in{custom}</div>""",
            formatters={
                "@long": hover_js("seconds"),
                "@out": hover_js("bytes"),
                "@in": hover_js("bytes"),
            },
        )
    )
    return plot
