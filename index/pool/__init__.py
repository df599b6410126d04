"""The pool of candidates that a request ranks: beam, query log, words and fresh items.

`pool` gathers and fuses the candidates of a request. `pool_index` holds what that needs: the words of the items
(`lexical`), the choices of people (`query_log`), the rows of their vectors (`dense`) and the weights (`fusion`).
"""
