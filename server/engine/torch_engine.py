"""The torch engine: exact trie-constrained beam search at about the cost of one forward pass (DESIGN §7).

The beams of a request are *query positions* of its one sequence (tree attention): each new position
attends to the prompt, to its ancestors and to itself. The prompt's keys and values are stored and
read once; there are exactly L − 1 decode passes after the prefill, and no stop condition.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from index.allowed import Allowed, SlotSet
from index.bundle import Bundle
from index.trie import Trie
from index.vocabulary import IdentifierVocabulary
from server.engine.beam import Beam, advance, best_items
from server.engine.cache import BeamCache
from server.engine.contract import EngineError, Ranking, RankRequest

STAGES = ("prefill", "decode", "head", "trie")


@dataclass(slots=True)
class _Stopwatch:
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    last: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] += now - self.last
        self.last = now


class TorchEngine:
    """Ranks with a Hugging Face causal language model.

    normalisation: `level` or `vocabulary`, see `BundleInfo`.
    living: slots of the items that are not removed; None for all.
    max_batch_tokens: prompt and beam positions that one forward pass may hold together; longer
    lists of requests are split into several passes, alike lengths together.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        trie: Trie,
        vocabulary: IdentifierVocabulary,
        *,
        normalisation: str = "level",
        max_batch_tokens: int = 16384,
        living: SlotSet | None = None,
    ) -> None:
        if normalisation not in ("level", "vocabulary"):
            raise EngineError(f"normalisation {normalisation!r} is unknown; level and vocabulary are")
        if trie.levels != vocabulary.levels:
            raise EngineError(
                f"the trie has {trie.levels} levels, the identifier vocabulary {vocabulary.levels}"
            )
        self.model = model.eval()
        self.everything = Allowed.of(trie, living)
        self.vocabulary = vocabulary
        self.normalisation = normalisation
        self.max_batch_tokens = max_batch_tokens
        self._positions = int(getattr(model.config, "max_position_embeddings", 2**31))
        self._layers = int(model.config.num_hidden_layers)
        self._body = model.base_model
        self._head: Tensor = model.get_output_embeddings().weight
        if len(self._head) < vocabulary.size:
            raise EngineError(f"the model has {len(self._head)} output rows; {vocabulary.size} are needed")
        self._probe()

    @classmethod
    def open(cls, bundle: Bundle, *, max_batch_tokens: int = 16384) -> TorchEngine:
        return cls(
            bundle.load_model(),
            bundle.index.trie,
            bundle.vocabulary,
            normalisation=bundle.info.normalisation,
            max_batch_tokens=max_batch_tokens,
            living=bundle.index.living,
        )

    @torch.inference_mode()
    def rank(self, requests: Sequence[RankRequest]) -> list[Ranking]:
        """Rank a batch; see `Engine.rank`. Scores are log p(identifier | prompt)."""
        rankings: list[Ranking | None] = [None] * len(requests)
        for chunk in self._chunks(requests):
            for position, ranking in zip(chunk, self._rank_chunk([requests[k] for k in chunk]), strict=True):
                rankings[position] = ranking
        return [ranking for ranking in rankings if ranking is not None]

    def _chunks(self, requests: Sequence[RankRequest]) -> Iterator[list[int]]:
        """Split into passes that fit `max_batch_tokens`, alike lengths together."""
        chunk: list[int] = []
        width = 0
        for k in sorted(range(len(requests)), key=lambda k: len(requests[k].prompt)):
            width = max(width, self._width(requests[k]))
            each = len(requests[k].prompt) + width * (self.vocabulary.levels - 1)
            if chunk and (len(chunk) + 1) * each > self.max_batch_tokens:
                yield chunk
                chunk, width = [], self._width(requests[k])
            chunk.append(k)
        if chunk:
            yield chunk

    @staticmethod
    def _width(request: RankRequest) -> int:
        return max(request.beam_width, request.limit)

    def _rank_chunk(self, requests: Sequence[RankRequest]) -> list[Ranking]:
        watch = _Stopwatch()
        levels = self.vocabulary.levels
        widths = [self._width(request) for request in requests]
        allowed = [request.allowed or self.everything for request in requests]
        if any(each.trie.levels != levels for each in allowed):
            raise EngineError(f"identifiers of {levels} codes are needed")
        lengths = torch.tensor([len(request.prompt) for request in requests])
        if int(lengths.max()) + levels > self._positions:
            raise EngineError(
                f"a prompt of {int(lengths.max())} tokens leaves no room for {levels} codes in a context "
                f"of {self._positions} positions"
            )
        # A level cannot hold more hypotheses than a trie has nodes there.
        nodes = [max(len(each.trie.code[level]) for each in allowed) for level in range(levels - 1)]
        slots = [min(max(widths), most) for most in nodes]
        cache = BeamCache(self._layers, int(lengths.max()) + sum(slots))
        hidden = self._prefill(requests, lengths, cache).unsqueeze(1)  # [B, 1, d]
        watch.lap("prefill")
        beams = [Beam.root() for _ in requests]
        tree = torch.zeros(len(requests), 1, 0, dtype=torch.bool)  # [B, w, tree slots]: ancestors
        for level in range(levels):
            log_probs = [self._log_probs(hidden[b, : len(beam.nodes)], level) for b, beam in enumerate(beams)]
            for beam, chances in zip(beams, log_probs, strict=True):
                if level and self.vocabulary.end is not None:  # nothing can follow but the same again
                    chances[beam.codes == self.vocabulary.end] = 0
            watch.lap("head")
            beams = [
                advance(level, beam, log_probs[b], widths[b], allowed[b]) for b, beam in enumerate(beams)
            ]
            watch.lap("trie")
            if level < levels - 1:
                hidden, tree = self._decode(level, beams, slots[level], tree, lengths, cache)
                watch.lap("decode")
        rankings = [
            Ranking(*best_items(beam, allowed[b], requests[b].limit), watch.seconds)
            for b, beam in enumerate(beams)
        ]
        watch.lap("trie")
        return rankings

    def _prefill(self, requests: Sequence[RankRequest], lengths: Tensor, cache: BeamCache) -> Tensor:
        """Hidden state of each prompt's last token: float [B, d]. Right padding needs no mask: causal
        attention keeps real positions from it, and `_decode` masks it."""
        ids = torch.zeros(len(requests), int(lengths.max()), dtype=torch.long)
        for row, request in zip(ids, requests, strict=True):
            row[: len(request.prompt)] = torch.as_tensor(request.prompt)
        hidden: Tensor = self._body(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
        return hidden[torch.arange(len(requests)), lengths - 1]

    def _decode(
        self, level: int, beams: Sequence[Beam], width: int, tree: Tensor, lengths: Tensor, cache: BeamCache
    ) -> tuple[Tensor, Tensor]:
        """Feed the codes just written as `width` further query positions.

        Returns hidden states, float [B, width, d], and the new ancestor mask, bool [B, width, slots].
        """
        batch = len(beams)
        ids = torch.full((batch, width), int(self.vocabulary.first_code[level]), dtype=torch.long)
        parents = torch.zeros(batch, width, dtype=torch.long)
        for b, beam in enumerate(beams):
            ids[b, : len(beam.codes)] += torch.from_numpy(beam.codes)
            parents[b, : len(beam.parents)] = torch.from_numpy(beam.parents)
        ancestors = tree.gather(1, parents.unsqueeze(-1).expand(-1, -1, tree.shape[-1]))
        itself = torch.eye(width, dtype=torch.bool).expand(batch, -1, -1)
        tree = torch.cat([ancestors, itself], dim=-1)
        prompt = torch.arange(int(lengths.max())) < lengths.unsqueeze(-1)  # [B, P]
        mask = torch.cat([prompt.unsqueeze(1).expand(-1, width, -1), tree], dim=-1).unsqueeze(1)
        hidden: Tensor = self._body(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(lengths + level).unsqueeze(-1).expand(-1, width),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden, tree

    def _log_probs(self, hidden: Tensor, level: int) -> NDArray[np.float32]:
        """log p(code | hypothesis) of every code of a level: [w, d] → float32 [w, codebook]."""
        first, last = self.vocabulary.span(level)
        if self.normalisation == "level":
            logits = (hidden @ self._head[first:last].T).float()
            log_probs = logits.log_softmax(-1)
        else:
            logits = (hidden @ self._head.T).float()
            log_probs = logits[:, first:last] - logits.logsumexp(-1, keepdim=True)
        result: NDArray[np.float32] = log_probs.numpy()
        if not np.isfinite(result).all():
            raise EngineError("the model's scores are not finite; its weights are damaged or have diverged")
        return result

    @torch.inference_mode()
    def _probe(self) -> None:
        """Refuse architectures whose forward this engine would not reproduce.

        Some do more than head × hidden (biases, soft caps, scaled logits); some ignore a tree mask. Two
        beams that branch after two tokens must equal two plain forward passes.
        """
        name = type(self.model).__name__
        window = getattr(self.model.config, "sliding_window", None)
        if (
            window is not None
            and window < self._positions
            and getattr(self.model.config, "use_sliding_window", True)
        ):
            raise EngineError(f"{name} attends to a window of {window} positions; full attention is needed")
        first, last = self.vocabulary.first_added, self.vocabulary.size - 1
        prompt, branches = [first, last], [last, first]
        plain = [self.model(input_ids=torch.tensor([[*prompt, token]])) for token in branches]
        theirs = torch.cat([output.logits[0, -1:] for output in plain])
        cache = BeamCache(self._layers, 4)
        self._body(input_ids=torch.tensor([prompt]), past_key_values=cache, use_cache=True)
        hidden = self._body(
            input_ids=torch.tensor([branches]),
            attention_mask=torch.tensor([[[[True, True, True, False], [True, True, False, True]]]]),
            position_ids=torch.full((1, 2), 2),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[0]
        ours = hidden @ self._head.T
        if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2):
            raise EngineError(
                f"{name} cannot be served by this engine: its logits are not output rows times hidden state, or "
                "it does not take a tree attention mask"
            )
