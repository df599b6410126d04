"""The request side: ranking engines, batching and admission, the HTTP API, its metrics and its web page.

At the top stand `launch` (the process), `app` (what is mounted where) and `settings`. `server` imports
`index`, and never `gems` or `training`; of the sub-rooms, `training` may import `server.engine` only.
"""
