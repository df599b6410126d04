"""Commands of published logs, and the parts that all commands share which make data sets."""
