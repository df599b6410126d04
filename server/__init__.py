"""The request side: ranking engines, batching and admission, the HTTP API, its metrics and its web page.

At the top are `launch` (the process), `app` (the application and its routes) and `settings`. `server` imports `index`,
and never `gems` or `training`; `training` may import `server.engine` only.
"""
