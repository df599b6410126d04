"""DIGER: codes that stay differentiable while the recommender trains (*Differentiable Semantic ID for Generative
Recommendation*, 2026).

A history is read, and its items are predicted, in soft codes (`soft_codebooks`): the model reads mixtures of the rows
of codes (`item_tokens`), and its targets at level j are the shares y of the item's codes:

    L = −(1 / codes) Σ_items Σ_j Σ_k y_{j,k} log softmax(E_j h)_k

So the loss of the recommender, of both tasks, has a gradient in the codes and in the encoder of the item vectors. The
distance between residuals and codes is added, so that the codes go on meaning the vectors, which later items are named
by. The last level, which separates collisions, has the numbers of the hard codes, made anew in each epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from index.catalogue import Catalogue
from index.identifiers.codebooks import Codebooks
from index.identifiers.schemes.semantic import collision_level
from index.sequence.events import Event
from training.codes.item_tokens import ItemTokens
from training.codes.learner import CodeLearner, Optimisers
from training.codes.soft_codebooks import SoftCodebooks
from training.config import TrainConfig
from training.loop.batches import Batch, logged_batches
from training.loop.pairs import Pairs
from training.loop.parts import Part
from training.loop.schedule import rate_factor
from training.model.forward import decoder_only_states, encoder_decoder_states
from training.prepare.preparation import Prepared


class Diger(CodeLearner):
    """The model, the soft codebooks, and the numbers of the last level."""

    start: Tensor
    numbers: Tensor

    def __init__(
        self,
        prepared: Prepared,
        config: TrainConfig,
        histories: Sequence[Sequence[Event]],
        catalogue: Catalogue,
    ) -> None:
        """Start from a preparation with semantic identifiers.

        histories: training events of each person.
        """
        super().__init__(prepared, config)
        self._tokens = ItemTokens(prepared.vocabulary)
        known = prepared.identifiers.codebooks
        assert known is not None
        codes = config.codes
        self.soft = SoftCodebooks(known, self._vectors, codes.temperature, codes.schedule)
        self.register_buffer("start", torch.from_numpy(known.quantise(self._vectors)).long())
        self.register_buffer("numbers", torch.zeros(len(self._vectors), dtype=torch.long))
        groups: list[dict[str, Any]] = [
            {"params": [*self.soft.layers.parameters(), *self.soft.levels], "lr": codes.rate}
        ]
        if codes.schedule == "sigma":
            groups.append({"params": [self.soft.sigma], "lr": config.optimiser.learning_rate})
        self.optimisers = Optimisers(self.model, config.optimiser, groups)
        self._encoder = prepared.encoder(config)
        sequence = config.sequence
        pairs = Pairs.of(self.model, self._encoder, sequence.targets)
        # only identifiers are written here: texts have no soft codes
        beside = [task for task in sequence.tasks_beside_log if task.write == "identifier"]
        # the log from the first step on: codes are learned from it, whenever the training after this stage takes it in
        self._source = logged_batches(self._encoder, histories, catalogue, config, pairs, beside=beside)
        self.steps_per_epoch = self._source.steps_per_epoch

    def batches(self, step: int) -> Iterator[Batch]:
        epoch, skip = divmod(step, self.steps_per_epoch)
        while True:
            if not skip:
                self._number()
            self._encoder.write_items_as(self._tokens.written(self.numbers.cpu().numpy()))
            for position, batch in enumerate(self._source.epoch(epoch)):
                if position >= skip:
                    yield batch
            epoch, skip = epoch + 1, 0

    def step(self, batch: Batch, share: float) -> dict[str, float]:
        optimiser = self._config.optimiser
        levels = self._tokens.vocabulary.levels
        written = max(1, levels * sum(batch.targets.values()))
        noise, total, soft, nearest = self.soft.noise(share), 0.0, [], []
        for part in batch.parts:
            loss, found = self.losses(part, noise)
            total += float(loss.detach())
            scaled = self.soft.uncertain(loss / written * len(batch.parts)) + found.loss
            (scaled / len(batch.parts)).backward()
            soft.append(found.sampled)
            nearest.append(found.nearest)
        self.optimisers.step(rate_factor(share, optimiser.warmup, 1.0))
        if nearest:
            self.soft.count(nearest)
        sampled = float(torch.cat(soft).float().mean()) if soft else 0.0
        return {"loss": total / written, "noise": noise, "sampled": sampled}

    def losses(self, part: Part, noise: float) -> tuple[Tensor, Any]:
        """Return the summed loss of the codes that a part writes (nats), and the soft codes of its items."""
        tokens, model = self._tokens, self.model
        items = tokens.items(part)
        found = self.soft(torch.from_numpy(self._vectors[items.numpy()]).to(model.device), noise)
        rows = tokens.rows(model, part.ids, items, found.shares)
        if part.prompt is None or part.attended is None:
            position = None if part.position is None else part.position.to(model.device)
            states = decoder_only_states(model, rows, position)
        else:
            prompt = tokens.rows(model, part.prompt, items, found.shares)
            states = encoder_decoder_states(model, prompt, part.attended.to(model.device), rows)
        states = states[:, :-1].flatten(0, 1)
        target, level = part.ids[:, 1:].flatten(), part.level[:, 1:].flatten()
        head, loss = model.get_output_embeddings().weight, states[:0].sum()
        for j in range(tokens.vocabulary.levels):
            where = (level == j).nonzero().squeeze(1)
            if not len(where):
                continue
            first, last = tokens.vocabulary.span(j)
            own = self._config.identifiers.normalisation == "level"
            logits = states[where.to(states.device)] @ (head[first:last] if own else head).T
            logs = logits.log_softmax(1)[:, slice(None) if own else slice(first, last)]
            if j < tokens.levels:
                place = torch.searchsorted(items, tokens.item(target[where])).to(states.device)
                loss = loss - (found.shares[j][place] * logs).sum()
            else:
                loss = loss + F.nll_loss(logs, (target[where] - first).to(states.device), reduction="sum")
        return loss, found

    def finish(self) -> tuple[Codebooks, NDArray[np.int32], dict[str, float]]:
        known = self.soft.codebooks()
        codes = known.quantise(self._vectors)
        changed = (codes != self.start.cpu().numpy()).any(axis=1).mean()
        return known, codes, {"changed": float(changed), "noise": self.soft.noise(1.0)}

    def _number(self) -> None:
        """Number the items of each prefix of hard codes, as far as the last level has room."""
        numbers = collision_level(self.soft.codebooks().quantise(self._vectors))
        most = self._tokens.vocabulary.codebook_sizes[-1] - 1
        self.numbers.copy_(torch.from_numpy(np.minimum(numbers, most)))
