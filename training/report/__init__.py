"""`gems report`: a self-contained HTML page about a run, optionally compared with a baseline.

It reads only the files of a run, and imports neither torch nor most of the training side.
"""
