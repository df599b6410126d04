"""HTTP below the endpoints: connections with deadlines, request bodies, API keys, and the middleware.

Import the middleware, the route class of `body` and the dependency of `keys`; only `launch` uses `protocol`.
"""
