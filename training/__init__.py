"""The offline side: data sets, training, tuning methods, baselines, evaluation, and the `gems` command line.

`pipeline` is `gems train` from end to end, `config` its settings, `demo` the whole system at once. `training`
imports `gems`, `index` and `server.engine`; nothing imports `training`.
"""
