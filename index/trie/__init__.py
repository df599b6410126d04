"""All identifiers as a prefix tree in flat arrays, and the items of the tree that a request may return.

`trie` is the tree, `allowed` the items that a request may return, `filters` conditions on attributes. `offsets` and
`ranked_bits` are the packed arrays that they use. Import `Trie`, `Allowed`, `SlotSet` and the filters from their
modules.
"""
