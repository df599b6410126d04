"""All identifiers as a prefix tree in flat arrays, and which of its items may be returned.

`trie` is the tree, `allowed` the items that a request may be answered with, `filters` attribute conditions;
`offsets` and `ranked_bits` are the packed arrays under them. Import `Trie`, `Allowed`, `SlotSet` and the
filters from their modules.
"""
