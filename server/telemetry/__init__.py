"""Prometheus metrics and OpenTelemetry traces.

The service calls `tracing`, which does not import OpenTelemetry; `spans` makes the spans, and only `launch` connects
the two.
"""
