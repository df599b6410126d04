"""The engine in a process of its own, supervised: started, restarted, spoken to over a pipe.

Import `EngineProcess` from `engine_process`. `child` is the server's end, `worker` the other, `wire` what
passes between them, `template` the process that workers are forked from, `open` chooses the back end.
"""
