"""T5 behind the engine: the encoder once per request, the beams as positions of one flat decoder pass.

    pass 0:            the prompt, through the encoder; its keys and values for every decoder layer are stored once
                       for the request, not for each beam; and the start token  → the beam of level 0
    pass j = 1 .. L−1: the codes just written: each attends to the start token, to its ancestors and to itself, and
                       to all of the prompt  → the beam of level j

T5 does not scale its dot products, and adds a learned bias by relative position. In the decoder that is a difference of
depths, not of places among the flattened beams. The encoder reads in both directions: one more event changes all its
results for a history, so that there is no prefix cache.

Requests share passes without padding, as in `attention`. The forward is our own because `transformers` has none for
rows of several requests; the linear maps, norms and feed-forward layers are the model's modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from index.sequence.language_model import output_scale, start_token
from index.sequence.vocabulary import IdentifierVocabulary
from index.trie.allowed import Allowed
from server.engine.contract import EngineError, RankRequest
from server.engine.torch_backend.attention import KeyValues, Segment
from server.engine.torch_backend.forward_input import ForwardInput
from server.engine.torch_backend.same_logits import same_logits
from server.engine.torch_backend.search import Search

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(eq=False)
class Encoded:
    """An encoded prompt, and how far its decoder is.

    prompt: token ids.
    layers: keys and values [heads, P, d] of the prompt for each decoder layer; empty before it is encoded.
    depths: depths of the decoder's slots that are filled, int64 [slots].
    """

    prompt: Sequence[int]
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    depths: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))


@dataclass(frozen=True, eq=False)
class DecoderInput(ForwardInput):
    """Rows of a request in a decoder pass; the first pass encodes its prompt."""

    encoded: Encoded


class DecoderSearch(Search):
    """Beam search whose own sequence begins with the decoder's start token."""

    def __init__(
        self,
        request: RankRequest,
        allowed: Allowed,
        vocabulary: IdentifierVocabulary,
        layers: int,
        start: int,
    ) -> None:
        super().__init__(replace(request, prompt=[start]), allowed, vocabulary, layers)
        self._encoded = Encoded(request.prompt)

    def next_inputs(self) -> list[ForwardInput]:
        return [
            DecoderInput(one.ids, one.positions, one.segment, one.last, self._encoded)
            for one in super().next_inputs()
        ]


class EncoderDecoder:
    """Searches and forward passes of a T5."""

    # An encoder reads in both directions: its results for a prompt do not hold for a longer one.
    prefixes = False

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._layers = int(model.config.num_decoder_layers)
        self._start = start_token(model)
        self._scale = output_scale(model)

    def search(
        self,
        request: RankRequest,
        allowed: Allowed,
        vocabulary: IdentifierVocabulary,
        known: Tensor | None = None,
    ) -> Search:
        return DecoderSearch(request, allowed, vocabulary, self._layers, self._start)

    def forward(self, inputs: Sequence[ForwardInput]) -> Tensor:
        """Return the hidden states of all decoder tokens that output rows are multiplied by: float [rows, d]."""
        return self._forward(cast("Sequence[DecoderInput]", inputs))  # it made them itself

    def _forward(self, inputs: Sequence[DecoderInput]) -> Tensor:
        fresh = list(dict.fromkeys(one.encoded for one in inputs if not one.encoded.layers))
        if fresh:
            self._encode(fresh)
        decoder = self._model.decoder
        biases = [self._decoder_bias(one) for one in inputs]
        hidden = decoder.embed_tokens(torch.cat([one.ids for one in inputs]).to(self._model.device))
        rows = [one.segment.rows for one in inputs]
        for layer, block in enumerate(decoder.block):
            itself, across, _ = block.layer

            def to_itself(q: Tensor, k: Tensor, v: Tensor, layer: int = layer) -> Tensor:
                parts = zip(inputs, biases, *(torch.split(t, rows, 1) for t in (q, k, v)), strict=True)
                found = [_remembered(f.segment, layer, a, b, c, bias) for f, bias, a, b, c in parts]
                return torch.cat(found, 1)

            hidden = hidden + _attention(itself.SelfAttention, itself.layer_norm(hidden), to_itself)
            q = _heads(across.EncDecAttention, "q", across.layer_norm(hidden))
            parts = zip(torch.split(q, rows, 1), inputs, strict=True)
            found = [_attend(part, *one.encoded.layers[layer]) for part, one in parts]
            hidden = hidden + across.EncDecAttention.o(_joined(torch.cat(found, 1)))
            hidden = block.layer[-1](hidden)
        normed: Tensor = decoder.final_layer_norm(hidden)
        return normed * self._scale

    def _encode(self, prompts: Sequence[Encoded]) -> None:
        """Encode prompts, and store keys and values for the decoder's layers."""
        encoder = self._model.encoder
        rows = [len(prompt.prompt) for prompt in prompts]
        bias = self._encoder_bias(max(rows))
        ids = torch.tensor(
            [token for prompt in prompts for token in prompt.prompt], device=self._model.device
        )
        hidden = encoder.embed_tokens(ids)

        def within_prompts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            parts = zip(rows, *(torch.split(t, rows, 1) for t in (q, k, v)), strict=True)
            return torch.cat([_attend(a, b, c, bias[:, :n, :n]) for n, a, b, c in parts], 1)

        for block in encoder.block:
            itself = block.layer[0]
            hidden = hidden + _attention(itself.SelfAttention, itself.layer_norm(hidden), within_prompts)
            hidden = block.layer[-1](hidden)
        hidden = encoder.final_layer_norm(hidden)
        for block in self._model.decoder.block:
            attention = block.layer[1].EncDecAttention
            keys, values = (torch.split(_heads(attention, name, hidden), rows, 1) for name in "kv")
            for prompt, k, v in zip(prompts, keys, values, strict=True):
                prompt.layers.append((k, v))

    def _encoder_bias(self, length: int) -> Tensor:
        """Return the bias of key j for query i, [heads, length, length]; its corner is the bias of a shorter prompt."""
        differences = torch.arange(1 - length, length)
        biases = _bias(self._model.encoder, differences)  # [heads, 2 length − 1]
        return biases.unfold(1, length, 1).flip(1)  # row i begins at difference −i

    def _decoder_bias(self, one: DecoderInput) -> Tensor:
        """Return the bias of all filled slots for the input's rows, [heads, rows, slots]; −inf for other branches."""
        encoded = one.encoded
        encoded.depths = torch.cat([encoded.depths, one.positions])
        bias = _bias(self._model.decoder, encoded.depths - one.positions.unsqueeze(1))
        return bias.masked_fill(~one.segment.mask.to(bias.device), -torch.inf)

    @torch.inference_mode()
    def check(self, head: Tensor, vocabulary: IdentifierVocabulary) -> None:
        """Compare logits with the model's own forward pass: two prompts, each with beams that branch.

        head: output rows of the model, [V, d].
        Raises `EngineError` if they differ.
        """
        first, last = vocabulary.first_added, vocabulary.size - 1
        prompts, branches = [[first, last, first], [last]], [last, first]
        theirs = [
            self._model(
                input_ids=torch.tensor([prompt], device=self._model.device),
                decoder_input_ids=torch.tensor([[self._start, first, branch]], device=self._model.device),
                use_cache=False,
            ).logits[0, -1]
            for prompt in prompts
            for branch in branches
        ]
        states = [(KeyValues(self._layers, 4), Encoded(prompt)) for prompt in prompts]
        passes = [([self._start], [[0]]), ([first], [[1]]), (branches, [[1, 2], [1, 3]])]  # tokens, own slots
        for depth, (tokens, own) in enumerate(passes):
            ids, positions = torch.tensor(tokens), torch.full((len(tokens),), depth)
            hidden = self.forward(
                [
                    DecoderInput(
                        ids,
                        positions,
                        Segment(key_values, depth, len(tokens), 1, torch.tensor(own)),
                        {},
                        encoded,
                    )
                    for key_values, encoded in states
                ]
            )
        if not same_logits(hidden @ head.T, torch.stack(theirs)):
            raise EngineError(
                f"{type(self._model).__name__} cannot be served by this engine: it computes other logits than the "
                "model itself"
            )


def _bias(stack: Any, differences: Tensor) -> Tensor:
    """Return the learned bias of relative positions (key − query): int64 [...] → [heads, ...]."""
    attention = stack.block[0].layer[0].SelfAttention
    buckets = attention._relative_position_bucket(
        differences,
        bidirectional=not attention.is_decoder,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    table = attention.relative_attention_bias
    biases: Tensor = table(buckets.to(table.weight.device))
    return biases.movedim(-1, 0)


def _attention(attention: Any, normed: Tensor, attend: Attend) -> Tensor:
    q, k, v = (_heads(attention, name, normed) for name in "qkv")
    out: Tensor = attention.o(_joined(attend(q, k, v)))
    return out


def _heads(attention: Any, name: str, hidden: Tensor) -> Tensor:
    """Apply one projection: [rows, d_model] → [heads, rows, d]."""
    projected: Tensor = getattr(attention, name)(hidden)
    return projected.view(len(hidden), attention.n_heads, -1).transpose(0, 1)


def _joined(heads: Tensor) -> Tensor:
    """Join heads: [heads, rows, d] → [rows, heads · d]."""
    return heads.transpose(0, 1).flatten(1)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attend: [heads, rows, d], bias [heads, rows, keys] → [heads, rows, d]."""
    mask = None if bias is None else bias.unsqueeze(0)
    return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, scale=1.0)[0]


def _remembered(segment: Segment, layer: int, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Store keys and values, and attend to all filled slots of a request."""
    segment.key_values.write(layer, segment.begin, k, v)
    return _attend(q, *segment.key_values.read(layer, segment.begin + segment.rows), bias)
