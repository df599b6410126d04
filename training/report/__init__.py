"""`gems report`: one self-contained HTML page about a run, beside a baseline where there is one.

It reads files of a run, and imports neither torch nor the rest of the training side.
"""
