"""Processes that run tasks: how they are started, spoken to, watched, interrupted and ended.

Knows nothing of tasks, graphs or memory: what a worker does with its messages is a function named
when the pool is made. `docs/architecture.md` tells how the processes hang together.

Imports nothing by itself: the template process needs this package, and not the pool in it.
"""
