"""Runs Dask graphs on one machine.

Only public names live here. Importing the package starts nothing, changes nothing, and loads
neither Dask nor NumPy.
"""

from graphmill import graph, local, order

__all__ = ["__version__", "graph", "local", "order"]

#: The one place where the version is written: the build reads it from here, and reading it costs
#: no look-up of the installed metadata.
__version__ = "0.1.0"
