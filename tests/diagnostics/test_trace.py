"""Traces, as Chrome and Perfetto read them."""

import json

from graphmill.diagnostics.trace import write_trace

MB = 1_000_000


def test_events(recording, tmp_path):
    path = tmp_path / "trace.json"
    write_trace([recording], path)
    events = json.loads(path.read_text())["traceEvents"]
    threads = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert threads == {0: "caller", 1: "worker 0", 2: "worker 1"}
    tasks = [event for event in events if event["ph"] == "X"]
    assert [(task["name"], task["cat"]) for task in tasks[:2]] == [("load", "done"), ("load", "refused")]
    assert (tasks[2]["tid"], tasks[2]["ts"], tasks[2]["dur"]) == (2, 1.5e6, 1e6)
    assert tasks[2]["args"]["key"] == "('load-1a', 1)"
    counters = [event["args"] for event in events if event["ph"] == "C" and event["name"] == "memory"]
    assert counters[1] == {"live": 16 * MB, "warm": 8 * MB, "private": 200 * MB}
    assert [event["name"] for event in events if event["ph"] == "i"] == ["spill", "worker died"]
