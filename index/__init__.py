"""The item side: what can be found, and how the model names it.

Here live the catalogue, item embeddings, popularity and titles, and reading and writing of files; in
sub-rooms the trie, identifiers, token sequences, and the bundle on disk. Import from the modules; nothing
here imports `gems`, `server` or `training`.
"""
