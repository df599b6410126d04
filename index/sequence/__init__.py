"""A person's history as one token sequence, and its tokens.

`events` holds events and tasks, `vocabulary` the added tokens. `encoder` turns histories and requests into prompts and
training samples. `plain_text` keeps users' text free of control tokens. `language_model` opens backbones.
"""
