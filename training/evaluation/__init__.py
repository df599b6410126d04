"""How good the rankings are: metrics, floors, intervals, and the evaluation that combines them.

It ranks through the very engine that serves. Sub-rooms: `comparison` of systems, `preservation` of general
knowledge.
"""
