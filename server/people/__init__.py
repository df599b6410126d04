"""People remembered: a store of what each person did, from which requests with a `user_id` get their history.

store         what any store can do, and how it fails
interaction   one event of one person
sqlite_*      the embedded store: the file, its rows, and the threads that read and write it
redis_store   the one for many servers
open          the choice between them
people        the store as the service and the routes use it: time limits, metrics, caches
export        `gems data events`: the store as interactions for training
"""
