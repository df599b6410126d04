"""The meaning of a ranking request, and its answer: from a validated body to items, titles and timings.

`service` is the way of a request; `parsed_request`, `history` and `selection` read it with one index version,
`explanation` says which history entries mattered, `answer` writes what is sent. Import `Service`.
"""
