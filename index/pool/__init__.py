"""The pool: candidates that come from words and from what people chose before, beside those of the beam."""
