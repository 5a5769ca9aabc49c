"""Static order: which task is to run before which."""
