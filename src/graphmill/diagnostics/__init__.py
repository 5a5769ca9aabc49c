"""What happened in runs, and what happens now: records, pictures, progress.

Nothing here runs unless it is asked for.
"""
