"""What to run: graphs of any dialect, and the helpers that work on them."""

from graphmill.graph.legacy import (
    evaluate,
    get_dependencies,
    has_tasks,
    ishashable,
    istask,
)
from graphmill.graph.model import Graph, as_mapping, read_graph
from graphmill.graph.rewrite import cull, fuse, inline, inline_functions
from graphmill.graph.sorting import isdag, toposort
from graphmill.graph.walk import flatten, reverse_dict

__all__ = [
    "Graph",
    "as_mapping",
    "cull",
    "evaluate",
    "flatten",
    "fuse",
    "get_dependencies",
    "has_tasks",
    "inline",
    "inline_functions",
    "isdag",
    "ishashable",
    "istask",
    "read_graph",
    "reverse_dict",
    "toposort",
]
