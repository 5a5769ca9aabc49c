"""The report: one HTML file with pictures of what happened, which needs nothing else.

Knows records, and bokeh, which comes with an extra.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from graphmill.diagnostics.amounts import OTHER, colours, of_bytes, of_count, of_seconds
from graphmill.diagnostics.kinds import KindUse, bars, rank_kinds
from graphmill.diagnostics.log import Outcome
from graphmill.diagnostics.pages import page_part
from graphmill.diagnostics.records import Recording
from graphmill.errors import MissingExtra

#: How many kinds the table has; the rest share a line.
MOST_KINDS = 40


def write_report(recordings: Sequence[Recording], path: str | os.PathLike[str]) -> None:
    """Write the page, replacing what is there.

    Raises
    ------
    MissingExtra
        If bokeh is not installed.
    """
    page = render_report([recording for recording in recordings if recording.tasks])
    Path(path).write_text(page, encoding="utf-8")


def render_report(recordings: Sequence[Recording]) -> str:
    """Make the page."""
    try:
        from bokeh.embed import components  # noqa: PLC0415 - an extra
        from bokeh.resources import Resources  # noqa: PLC0415 - as above
    except ImportError as error:
        raise MissingExtra(
            "Reports are drawn with bokeh, which is not installed: pip install 'graphmill[ui]'"
        ) from error
    sections = []
    plots: dict[str, Any] = {}
    for number, recording in enumerate(recordings, 1):
        section = _Section(recording, number if len(recordings) > 1 else None)
        plots |= section.plots
        sections.append(section)
    script, places = components(plots)
    library = Resources(mode="inline", components=["bokeh", "bokeh-gl"]).render_js()
    now = f"{datetime.now().astimezone():%d %B %Y, %H:%M}"
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>graphmill report</title><style>{page_part('style.css')}</style>{library}</head><body><main>"
        f"<header><h1>graphmill report</h1><span class='faint'>{now}</span></header>"
        + "".join(section.html(places) for section in sections)
        + f"</main>{script}<script>{page_part('report.js')}</script></body></html>\n"
    )


class _Section:
    """What the page has of one engine."""

    def __init__(self, recording: Recording, number: int | None) -> None:
        from graphmill.diagnostics import figures, graph_figure  # noqa: PLC0415 - they load bokeh

        self._recording = recording
        self._number = number
        self._uses = rank_kinds(recording.tasks)
        kinds = [use.kind for use in self._uses]
        self._colours = colours(kinds)
        pieces = bars(recording.tasks)
        x_range = figures.time_range(recording)
        self._merged = ""
        if len(pieces) > figures.MOST_BARS:
            self._merged = "; until then, short tasks share bars as high as the part of the time they take"
        self._bad = figures.LIMIT
        self._names = {name: f"{name}{number or ''}" for name in ("lanes", "running", "memory", "graph")}
        self.plots = {
            self._names["lanes"]: figures.lanes(recording, pieces, kinds, x_range),
            self._names["running"]: figures.running(recording, kinds, x_range),
            self._names["memory"]: figures.memory(recording, x_range),
        }
        drawn = graph_figure.graph(recording, kinds)
        if drawn is not None:
            self.plots[self._names["graph"]] = drawn
        self._memory_legend = [(colour, name, "") for colour, name in figures.MEMORY.values()]
        self._memory_legend += [(figures.SPILLED, "on disk", ""), (figures.LIMIT, "the limit", "line")]
        if recording.spills:
            self._memory_legend.append((figures.SPILLED, "moved to disk", "▼"))

    def html(self, places: dict[str, str]) -> str:
        """Put the section together; `places` has what stands for each plot."""
        summary = self._recording.summary
        kinds = [(colour, kind, "") for kind, colour in self._colours.items() if colour != OTHER]
        if len(kinds) < len(self._colours):
            kinds.append((OTHER, "others", ""))
        if summary.retries or any(task.outcome != Outcome.DONE.value for task in self._recording.tasks):
            kinds.append((self._bad, "failed, or was repeated", "▲"))
        note = "hover for keys and sizes, drag to zoom" + self._merged
        peak = f"at most {of_bytes(summary.peak)} of {of_bytes(summary.limit)}"
        cards = [
            _card("Workers", places[self._names["lanes"]], _legend(kinds), note),
            _card("Tasks at a time", places[self._names["running"]], "", "by kind; the line: all workers"),
            _card("Memory", places[self._names["memory"]], _legend(self._memory_legend), peak),
            _card("Kinds of task", _table(self._uses, self._colours), "", "click on a column to rank by it"),
        ]  # fmt: skip
        if self._names["graph"] in places:
            cards.append(_card("Graph", places[self._names["graph"]], "", "larger: took longer"))
        head = "" if self._number is None else f"<header><h2>Engine {self._number}</h2></header>"
        return head + _tiles(self._recording) + "".join(cards)


def _card(title: str, body: str, legend: str, note: str) -> str:
    top = f"<div class='top'><h2>{title}</h2><span class='faint'>{note}</span></div>"
    return f"<section class='card'>{top}{legend}{body}</section>"


def _legend(items: Iterable[tuple[str, str, str]]) -> str:
    """Say what colours mean: colour, meaning, and what has it: nothing for an area, "line", or a mark."""
    chips = []
    for colour, text, mark in items:
        if mark in ("", "line"):
            style = f"border-color:{colour}" if mark else f"background:{colour}"
            chip = f"<i class='chip {mark}' style='{style}'></i>"
        else:
            chip = f"<i style='color:{colour};font-style:normal;margin-right:4px'>{mark}</i>"
        chips.append(f"<span>{chip}{escape(text)}</span>")
    return f"<div class='legend'>{''.join(chips)}</div>"


def _tiles(recording: Recording) -> str:
    summary = recording.summary
    runs = len({task.run for task in recording.tasks})
    part = min(1.0, summary.peak / summary.limit) if summary.limit else 0.0
    rate = summary.tasks / summary.seconds if summary.seconds else 0.0
    read, born = of_bytes(summary.read_in_place), of_bytes(summary.born_in_place)
    avoided = of_bytes(summary.read_in_place + summary.born_in_place)
    tiles = [
        _tile(of_seconds(summary.seconds), of_count(runs, "run")),
        _tile(f"{summary.tasks:,}", f"tasks, {rate:,.0f} a second"),
        _tile(str(recording.workers), "workers"),
        _tile(of_bytes(summary.peak), f"peak of {of_bytes(summary.limit)}", gauge=part),
        _tile(of_bytes(summary.spilled), of_count(len(recording.spills), "spill") + " to disk"),
        _tile(avoided, f"copies avoided<br>{read} read, {born} born in place"),
        _tile(of_bytes(summary.copied), "results copied"),
        _tile(
            f"{summary.retries:,}", f"repeated, {of_count(summary.deaths, 'death')}", bad=summary.deaths > 0
        ),
    ]
    return f"<div class='tiles'>{''.join(tiles)}</div>"


def _tile(value: str, text: str, *, gauge: float | None = None, bad: bool = False) -> str:
    bar = "" if gauge is None else f"<div class='gauge'><i style='width:{gauge:.0%}'></i></div>"
    return f"<div class='tile{' bad' if bad else ''}'><b>{value}</b><span>{text}</span>{bar}</div>"


def _table(uses: Sequence[KindUse], colour: dict[str, str]) -> str:
    shown, rest = list(uses[:MOST_KINDS]), uses[MOST_KINDS:]
    if rest:
        shown.append(_together(rest))
    seconds = max([use.seconds for use in shown] + [1e-9])
    nbytes = max([use.output_bytes for use in shown] + [1])
    rows = []
    for use in shown:
        numbers = {"seconds": use.seconds, "bytes": use.output_bytes, "tasks": use.tasks}
        numbers |= {"mean": use.mean, "longest": use.longest, "taken": use.taken_bytes}
        data = " ".join(f"data-{name}='{value:.9g}'" for name, value in numbers.items())
        chip = f"<i class='chip' style='background:{colour.get(use.kind, OTHER)}'></i>"
        cells = [
            f"<td>{chip}{escape(use.kind)}</td>",
            f"<td>{use.tasks:,}{f' + {use.again} again' if use.again else ''}</td>",
            _share(use.seconds / seconds, of_seconds(use.seconds)),
            f"<td>{of_seconds(use.mean)}</td><td>{of_seconds(use.longest)}</td>",
            _share(use.output_bytes / nbytes, of_bytes(use.output_bytes)),
            f"<td>{of_bytes(use.input_bytes)}</td><td>{of_bytes(use.copied_bytes)}</td>",
            f"<td>{of_bytes(use.taken_bytes)}</td>",
        ]
        rows.append(f"<tr {data}>{''.join(cells)}</tr>")
    head = (
        "<th>kind</th><th data-by='tasks'>tasks</th><th data-by='seconds' class='by'>time</th>"
        "<th data-by='mean'>mean</th><th data-by='longest'>longest</th><th data-by='bytes'>results</th>"
        "<th>inputs</th><th>copied</th><th data-by='taken'>most memory</th>"
    )
    return (
        f"<div class='scroll'><table class='kinds'><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _share(part: float, text: str) -> str:
    return f"<td class='share'><div><i style='width:{part:.1%}'></i><b>{text}</b></div></td>"


def _together(uses: Sequence[KindUse]) -> KindUse:
    return KindUse(
        of_count(len(uses), "other kind"),
        sum(use.tasks for use in uses),
        sum(use.again for use in uses),
        sum(use.seconds for use in uses),
        max(use.longest for use in uses),
        sum(use.output_bytes for use in uses),
        sum(use.input_bytes for use in uses),
        sum(use.copied_bytes for use in uses),
        max(use.taken_bytes for use in uses),
    )
