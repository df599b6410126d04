"""Ranking engines: one contract, one object for serving and for evaluation.

`contract` says what an engine is and does, `options` how it is set, `beam` is the search step that all share,
`step_loop` the loop. The back ends import these; `process` runs one of them in a process of its own. This is
the one room of the server that `training` may import.
"""
