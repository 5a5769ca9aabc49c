"""Measurements of graphmill: nothing here is needed to run it, or imported by it."""
