"""The stages of a ranking request, in the order of time: labels of metrics, names of spans, fields of `Timings`."""

from __future__ import annotations

ENGINE_STAGES = ("prefill", "decode", "head", "trie")  # as the engines report them in `Ranking.seconds`
STAGES = ("tokenise", "queue", *ENGINE_STAGES, "explain")
