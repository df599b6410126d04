"""The vLLM engine: the same contract for those who run vLLM, in an environment of its own.

Import `VllmEngine` from `engine`. Only `processors` imports vLLM when it is loaded.
"""
