"""Serving: the deployments, the queue before the engine, readiness.

`deployments` holds the current `deployment` and swaps it, `scheduler` batches and admits by the forecast of
`throughput`, `readiness` says whether requests are wanted.
"""
