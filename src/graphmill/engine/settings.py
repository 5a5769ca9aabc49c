"""Dask's settings, as tasks see them: those that hold where `get` was called."""

from __future__ import annotations

import logging
import sys

import cloudpickle

logger = logging.getLogger("graphmill")

#: Settings that say where graphs run, which is another matter within a task.
_OWN = ("scheduler", "pool", "num_workers")


def dask_settings() -> bytes | None:
    """Pack Dask's settings for workers.

    Returns
    -------
    bytes or None
        A pickled dictionary; None where Dask is not in use, or its settings cannot be sent.
    """
    module = sys.modules.get("dask.config")
    if module is None:
        return None
    settings = {name: value for name, value in module.config.items() if name not in _OWN}
    try:
        packed: bytes = cloudpickle.dumps(settings)
    except Exception as error:  # noqa: BLE001 - users may set anything
        logger.warning("tasks do not see Dask's settings, which cannot be sent: %s", error)
        return None
    return packed
