"""Tuning methods: what a method is, how it is found by name, and what several of them share.

`method` is the interface, `registry` finds the file in `tuning` that bears a method's name, `adamw` is
shared.
"""
