"""Tuning methods: their interface, their registry, and the AdamW that several of them share.

`method` is the interface, `registry` finds the file in `tuning` that has a method's name, `adamw` is shared.
"""
