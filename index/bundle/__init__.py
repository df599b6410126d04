"""The bundle: one directory that a server can serve, and the versions of its item index.

`bundle` publishes and opens it. `item_index` holds the items at one moment, `versions` switches between versions,
`update` adds, changes and removes items. `manifest` checks that files are complete. `sizes` and `describe` report. No
other part of `index` imports this one.
"""
