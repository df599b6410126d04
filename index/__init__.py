"""The item side: catalogue, item embeddings, identifiers, trie, sequence encoding, the bundle on disk."""
