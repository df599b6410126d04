"""The HTTP endpoints, one file for each group: ranking, items, administration, operations, the web pages.

Each file but `files` makes one `APIRouter`; `server.app` mounts them. No other module imports this package.
"""
