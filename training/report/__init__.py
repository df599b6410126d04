"""`gems report`: one self-contained HTML page about a run, beside a baseline where there is one."""
