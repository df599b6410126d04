"""The item side: the items that can be found, and their identifiers.

This folder holds the catalogue, item embeddings, popularity, titles, and reading and writing of files. Its subfolders
hold the trie, identifiers, token sequences, and the bundle on disk. Import from the modules. No part of it imports
`gems`, `server` or `training`.
"""
