"""What a run is on disk and among processes: its folder, log, locks, data parallelism, a server to try it on.

Used by trainings, baselines and sweeps alike.
"""
