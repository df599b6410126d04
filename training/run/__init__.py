"""A run on disk and among processes: its folder, log, locks, data parallelism, and a server to try it on.

Trainings, baselines and sweeps use it.
"""
