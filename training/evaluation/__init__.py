"""The quality of rankings: metrics, floors, intervals, and the evaluation that combines them.

It ranks with the same engine that serves requests. Subpackage: `comparison` of systems.
"""
