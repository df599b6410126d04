"""What every process of the server does with itself: log lines, garbage collection, memory figures.

The lowest room of `server`; the engine's process uses it, too.
"""
