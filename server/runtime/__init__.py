"""Log lines, garbage collection and memory figures of every process of the server.

This is the lowest package of `server`; the engine process uses it, too.
"""
