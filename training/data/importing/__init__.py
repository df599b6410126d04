"""Import of a user's own files, every row checked.

`importer` makes the data set; `bad_rows` tells what cannot be used.
"""
