"""The request side: ranking engines, micro-batching, the HTTP API and its metrics."""
