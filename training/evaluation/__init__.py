"""The quality of rankings: metrics, floors, intervals, and the evaluation that combines them.

It ranks with the same engine that serves requests. Subpackages: `comparison` of systems, and `preservation` of general
knowledge.
"""
