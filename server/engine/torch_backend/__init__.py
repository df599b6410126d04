"""The torch engine: exact trie-constrained beam search at about the cost of one forward pass.

Import `TorchEngine` from `engine`; the rest is its own: `search` (one request's beam), `backbone` with
`decoder`, `encoder_decoder`, `attention`, `graphs` and `packed` (the model), `head` (scores), `prefix_cache`.
"""
