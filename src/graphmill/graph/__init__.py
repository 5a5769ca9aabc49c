"""What to run: graphs of any dialect, and the helpers that work on them."""

from graphmill.graph.legacy import (
    evaluate,
    get_dependencies,
    has_tasks,
    ishashable,
    istask,
)
from graphmill.graph.model import Graph, as_mapping, read_graph
from graphmill.graph.walk import flatten, reverse_dict

__all__ = [
    "Graph",
    "as_mapping",
    "evaluate",
    "flatten",
    "get_dependencies",
    "has_tasks",
    "ishashable",
    "istask",
    "read_graph",
    "reverse_dict",
]
