"""The bundle: one directory that a server can serve, and the versions of its item index.

`bundle` publishes and opens it, `item_index` is the items at one moment, `versions` swaps them, `update`
changes the living catalogue, `manifest` proves that files are whole; `sizes` and `describe` report. The
highest room of `index`.
"""
