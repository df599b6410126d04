"""`gems rank`: the server's answers for many people, queries or requests at once, in one Parquet file.

`people`, `queries` and `requests` are what is ranked, as `Entry`s; `workers` rank them in slices; `parts` keeps what is
done, so that a killed run goes on, and joins it; `rank` puts them together.
"""
