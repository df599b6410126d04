"""What the server tells of its work: Prometheus metrics and OpenTelemetry traces.

`metrics` may be imported anywhere above the engine; `tracing` is what the service calls, `spans` what
listens, and only `launch` brings the two together.
"""
