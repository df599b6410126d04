"""A person's life as one token sequence, and the tokens that it is made of.

`events` holds events and tasks, `vocabulary` the added tokens, `encoder` turns histories and requests into
prompts and training samples; `plain_text` keeps users' text free of control tokens, `language_model` opens
backbones.
"""
