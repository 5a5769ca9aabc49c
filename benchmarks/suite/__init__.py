"""Real workloads on every engine, in turn, each in a process of its own; run by `python -m benchmarks`."""
