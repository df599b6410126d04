"""Many servers by Ray Serve, an optional extra: replicas of the server behind one address.

`application` puts `front` and `replica` together, `exchange` is what passes between them, `person` whose request it is,
`scrape` the metrics of all; `machine` and `command_line` run it on one machine.
"""
