"""HTTP below the endpoints: connections with deadlines, bodies, keys, and what happens around every request.

Import the middleware, the route class of `body` and the dependency of `keys`; `protocol` is for `launch`.
"""
