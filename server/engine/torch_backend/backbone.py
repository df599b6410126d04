"""Backbones: the language model as searches use it, hidden states of new tokens of several requests in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from index.sequence.language_model import is_encoder_decoder
from index.sequence.vocabulary import IdentifierVocabulary
from index.trie.allowed import Allowed
from server.engine.contract import EngineError, RankRequest
from server.engine.options import EngineOptions, Precision
from server.engine.torch_backend.attention import ForwardPass, KeyValues, Rows, Segment, flat_attention
from server.engine.torch_backend.decoder import Decoder
from server.engine.torch_backend.encoder_decoder import EncoderDecoder
from server.engine.torch_backend.forward_input import ForwardInput
from server.engine.torch_backend.graphs import PaddedPasses
from server.engine.torch_backend.out_of_memory import is_out_of_memory
from server.engine.torch_backend.same_logits import same_logits
from server.engine.torch_backend.search import Search


class Backbone(Protocol):
    """A model as the engine uses it. prefixes: whether keys and values of a prompt hold for longer prompts, too."""

    @property
    def prefixes(self) -> bool: ...

    def search(
        self, request: RankRequest, allowed: Allowed, vocabulary: IdentifierVocabulary, known: Tensor | None
    ) -> Search:
        """Begin a search. known: see `Search`; None if there are no prefixes."""
        ...

    def forward(self, inputs: Sequence[ForwardInput]) -> Tensor:
        """Return the hidden states that output rows are multiplied by, one input after the other: [rows, d]."""
        ...


def backbone_of(
    model: PreTrainedModel,
    vocabulary: IdentifierVocabulary,
    options: EngineOptions,
) -> Backbone:
    """Return the fastest backbone for this model whose logits equal the model's own.

    options: precision, cuda_graphs and max_batch_tokens are read.
    Raises `EngineError` for models that the engine would get wrong.
    """
    precision = options.precision
    if is_encoder_decoder(model):
        _no_int8(model, precision)
        reader = EncoderDecoder(model)
        reader.check(model.get_output_embeddings().weight, vocabulary)
        return reader
    _refuse(model)
    layers = int(model.config.num_hidden_layers)
    if precision is None or not Decoder.supports(model):
        _no_int8(model, precision)
        return _DecoderOnly(layers, model.device, _Plain(model)).probed(model, vocabulary)
    # Eight bits move logits further than any tolerance allows: the forward pass is compared before rounding to them.
    whole: Precision = "float32" if model.dtype == torch.float32 else "bfloat16"
    backbone = _DecoderOnly(layers, model.device, Decoder.of(model, whole)).probed(model, vocabulary)
    if precision != whole:
        del backbone  # frees its memory for the other
        backbone = _DecoderOnly(layers, model.device, Decoder.of(model, precision))
    if options.cuda_graphs and vocabulary.levels > 1:
        backbone.pad(vocabulary.levels - 1, options)
        if precision == whole:
            backbone.probed(model, vocabulary)
    return backbone


class _Plain:
    """The model's own forward pass, with layers that attend by segments."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def __call__(self, ids: Tensor, positions: Tensor, segments: Sequence[Rows]) -> Tensor:
        with flat_attention(self._model):
            hidden: Tensor = self._model.base_model(
                input_ids=ids.unsqueeze(0),
                position_ids=positions.unsqueeze(0),
                segments=segments,
                use_cache=False,
            ).last_hidden_state
        return hidden[0]


class _DecoderOnly:
    prefixes = True

    def __init__(
        self,
        layers: int,
        device: torch.device,
        forward_pass: ForwardPass,
    ) -> None:
        self._layers = layers
        self._device = device
        self._forward_pass = forward_pass
        self._padded: PaddedPasses | None = None

    def pad(self, depth: int, options: EngineOptions) -> None:
        """Compute passes over beams padded from now on, as far as `PaddedPasses` takes them."""
        self._padded = PaddedPasses(
            self._forward_pass, self._device, depth, options.max_batch_tokens, options.cuda_graphs
        )

    def search(
        self, request: RankRequest, allowed: Allowed, vocabulary: IdentifierVocabulary, known: Tensor | None
    ) -> Search:
        return Search(request, allowed, vocabulary, self._layers, known)

    def forward(self, inputs: Sequence[ForwardInput]) -> Tensor:
        if self._padded is not None and (hidden := self._padded.forward(inputs)) is not None:
            return hidden
        ids = torch.cat([each.ids for each in inputs])
        positions = torch.cat([each.positions for each in inputs])
        segments = [each.segment for each in inputs]
        return self._forward_pass(ids.to(self._device), positions.to(self._device), segments)

    @torch.inference_mode()
    def probed(self, model: PreTrainedModel, vocabulary: IdentifierVocabulary) -> Self:
        """Return itself if its logits are the model's: two beams that branch after two tokens, against plain passes.

        Some models do more than head × hidden (biases, soft caps, scaled logits); some do not attend by segments.
        """
        name = type(model).__name__
        first, last = vocabulary.first_added, vocabulary.size - 1
        prompt, branches = [first, last], [last, first]
        plain = [model(input_ids=torch.tensor([[*prompt, token]], device=model.device)) for token in branches]
        theirs = torch.cat([output.logits[0, -1:] for output in plain])
        key_values = KeyValues(self._layers, 4)
        try:
            self.forward([ForwardInput(torch.tensor(prompt), torch.arange(2), Segment(key_values, 0, 2), {})])
            hidden = self.forward(
                [
                    ForwardInput(
                        torch.tensor(branches),
                        torch.full((2,), 2),
                        Segment(key_values, 2, 2, 2, torch.tensor([[2], [3]])),
                        {},
                    )
                ]
            )
        except (TypeError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise EngineError(f"{name} does not take the engine's tree attention: {error}") from error
        ours = hidden @ model.get_output_embeddings().weight.T
        if not same_logits(ours, theirs):
            raise EngineError(
                f"{name} cannot be served by this engine: its logits are not output rows times hidden state, or "
                "it does not take tree attention"
                + (", when its passes are padded (GEMS_CUDA_GRAPHS=0 does without)" if self._padded else "")
            )
        return self


def _refuse(model: PreTrainedModel) -> None:
    """Raise `EngineError` for traits of a model that a probe with three tokens would not show."""
    name, config = type(model).__name__, model.config
    window = getattr(config, "sliding_window", None)
    positions = getattr(config, "max_position_embeddings", math.inf)
    if window is not None and window < positions and getattr(config, "use_sliding_window", True):
        raise EngineError(f"{name} attends to a window of {window} positions; full attention is needed")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        raise EngineError(
            f"{name} turns positions by the length of a pass ({rope['rope_type']} rope), which is that of all "
            "requests together here"
        )


def _no_int8(model: PreTrainedModel, precision: Precision | None) -> None:
    if precision == "int8":
        raise EngineError(
            f"int8 is there for models of Llama's family and GPT-NeoX, not for {type(model).__name__}; use bfloat16"
        )
