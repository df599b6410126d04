"""GenRet: codes by a discrete autoencoder inside a T5, one position after another (Sun et al., NeurIPS 2023).

One T5 reads documents and queries (`documents`). Its decoder has read the codes z_1 … z_{t−1} of an item when it
writes the latent vector h_t. The codes of level t are the rows E of their tokens, so that the model that makes the
codes is the one that retrieves by them:

    P(z_t = k | z_{<t}, text) = softmax_k(u ⟨h_t, E_k⟩)        u = 1 / √d
    z_t of a document         = argmin_k ‖h_t − E_k‖² + p_k    p: prices of popular codes (`balancing`)

Position t is learned in two parts. In the first, of `WARM` of its steps,

    ½ contrastive + ½ code(<t)

then its codes start from balanced k-means of the documents' h_t, and in the second

    ½ contrastive + ½ commitment + ½ code(≤t) + 0.1 reconstruction

    contrastive     −log softmax over the batch of u ⟨h_t(query), h_t(document)⟩, at the query's own document
    code            −log P(z | query), mean over positions
    commitment      −log P(z_t | document)
    reconstruction  −log softmax over the batch of Σ_{j≤t} u ⟨E_{z_j}, sg[h_j(document)]⟩, at the codes' own document;
                    the last code passes its gradient straight through to h_t

At its end the documents' codes are chosen once more, with new prices, and neither they nor the rows E of the position
change while later ones are learned.

Later items are named by their vectors: the map from item vectors to (h_1, …, h_T) by ridge regression, and the codes of
each position in dimensions of their own.

Differences from the paper: prices, found on all documents by Sinkhorn iterations, in place of Sinkhorn iterations on
each batch; rates and batch size are those of the training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from index.catalogue import Catalogue
from index.identifiers.autoencoder import straight_through
from index.identifiers.balancing import balance, prices_of
from index.identifiers.codebooks import Codebooks, costs
from index.identifiers.levels import k_means, sample
from index.sequence.events import Event
from index.sequence.language_model import output_scale, start_token
from training.codes.documents import Documents, padded
from training.codes.learner import CodeLearner, Optimisers
from training.config import TrainConfig
from training.loop.schedule import rate_factor
from training.model.forward import encoder_decoder_states
from training.prepare.preparation import Prepared
from training.prepare.tuned_vectors import affine_map

WARM = 0.25  # share of a position's steps before it has codes
CONTRASTIVE, COMMITMENT, CODE, RECONSTRUCTION = 0.5, 0.5, 0.5, 0.1
PASS = 256  # documents of a pass over all of them
MEASURED = 1024  # documents among which the reconstruction is measured

Batch = tuple[list[int], list[list[int]]]  # rows of items, and a query of each


class GenRet(CodeLearner):
    """The T5, the codes of the documents, and the place in the sequence of positions.

    codes: int64 [N, T]; those before `position` are final.
    position: the position t that is learned, from 0; T when all are.
    started: whether it has codes, 0 or 1.
    reconstruction: the loss after each position, float [T].
    """

    codes: Tensor
    position: Tensor
    started: Tensor
    reconstruction: Tensor

    def __init__(
        self,
        prepared: Prepared,
        config: TrainConfig,
        histories: Sequence[Sequence[Event]],
        catalogue: Catalogue,
    ) -> None:
        """Start from a preparation of a T5 with semantic identifiers, whose codes only say how many there are.

        histories: training events of each person.
        """
        super().__init__()
        self.model = prepared.model
        self._config, self._vocabulary = config, prepared.vocabulary
        self._vectors = np.load(prepared.vectors, allow_pickle=False).astype(np.float32)
        self._texts = Documents.of(prepared.encoder(config), prepared.tokenizer, catalogue, histories)
        self._sizes = self._vocabulary.codebook_sizes[:-1]
        width = int(self.model.config.d_model)
        self._unit = width**-0.5
        self._scale = output_scale(self.model)
        self.register_buffer("codes", torch.zeros(len(catalogue), len(self._sizes), dtype=torch.long))
        self.register_buffer("position", torch.tensor(0))
        self.register_buffer("started", torch.tensor(0))
        self.register_buffer("reconstruction", torch.zeros(len(self._sizes)))
        for level, size in enumerate(self._sizes):
            self.register_buffer(f"price_{level}", torch.zeros(size))
            self.register_buffer(f"final_{level}", torch.zeros(size, width))
        self.optimisers = Optimisers(self.model, config.optimiser)
        filled = sum(map(bool, histories))
        self.steps_per_epoch = max(1, -(-filled // config.optimiser.batch_size))

    def batches(self, step: int) -> Iterator[Batch]:
        while True:
            rng = np.random.default_rng([self._config.seed, step])
            yield self._texts.draw(self._config.optimiser.batch_size, rng)
            step += 1

    def step(self, batch: Batch, share: float) -> dict[str, float]:
        self._reach(share)
        rows, queries = batch
        t, before = int(self.position), self.codes[rows, : int(self.position)]
        asked = self.latents(queries, before)
        read = self.latents([self._texts.documents[row] for row in rows], before)
        own = torch.arange(len(rows), device=before.device)
        losses = {"contrastive": F.cross_entropy(self._unit * asked[:, t] @ read[:, t].T, own)}
        chosen = before
        if self.started:
            losses |= self._losses_of_codes(read, before)
            chosen = torch.cat([before, self._choose(t, read[:, t].detach())[:, None]], 1)
        if chosen.shape[1]:
            positions = range(chosen.shape[1])
            each = [F.cross_entropy(self._logits(j, asked[:, j]), chosen[:, j]) for j in positions]
            losses["code"] = torch.stack(each).mean()
        weights = {
            "contrastive": CONTRASTIVE, "code": CODE, "commitment": COMMITMENT, "reconstruction": RECONSTRUCTION,
        }  # fmt: skip
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        total.backward()  # type: ignore[no-untyped-call]
        optimiser = self._config.optimiser
        self.optimisers.step(rate_factor(share, optimiser.warmup, 1.0))
        self._keep_final()
        return {"position": t + 1.0} | {name: float(loss.detach()) for name, loss in losses.items()}

    def finish(self) -> tuple[Codebooks, NDArray[np.int32], dict[str, float]]:
        self._reach(1.0)
        read = torch.cat([*self._passes(len(self._sizes) - 1)]).flatten(1).numpy()
        width = self.model.config.d_model
        levels = []
        for level, size in enumerate(self._sizes):
            book = np.zeros((size, width * len(self._sizes)), np.float32)
            book[:, level * width : (level + 1) * width] = self._final(level).cpu().numpy()
            levels.append(book)
        prices = tuple(self._price(level).cpu().numpy() for level in range(len(self._sizes)))
        known = Codebooks((affine_map(self._vectors, read),), tuple(levels), prices)
        codes = self.codes.cpu().numpy().astype(np.int32)
        figures = {
            f"reconstruction {level + 1}": float(loss)
            for level, loss in enumerate(self.reconstruction.tolist())
        }
        return known, codes, {"logged queries": float(self._texts.logged)} | figures

    def latents(self, texts: Sequence[Sequence[int]], codes: Tensor) -> Tensor:
        """Return h of texts after each of some codes, float [B, t + 1, d].

        codes: of their items, int64 [B, t].
        """
        ids, attended = padded(texts, self.model.device)
        first = torch.from_numpy(self._vocabulary.first_code[: codes.shape[1]]).to(codes)
        start = codes.new_full((len(codes), 1), start_token(self.model))
        written = torch.cat([start, codes + first], 1)
        return encoder_decoder_states(self.model, ids, attended, written) / self._scale

    def _losses_of_codes(self, read: Tensor, before: Tensor) -> dict[str, Tensor]:
        """Return commitment and reconstruction of a position that has codes. read: h of the documents."""
        t, latent = before.shape[1], read[:, before.shape[1]]
        chosen = self._choose(t, latent.detach())
        coded = straight_through(latent, self._rows(t)[chosen])
        scores = self._unit * (coded @ latent.detach().T + self._scores(read.detach(), before))
        own = torch.arange(len(latent), device=latent.device)
        return {
            "commitment": F.cross_entropy(self._logits(t, latent), chosen),
            "reconstruction": F.cross_entropy(scores, own),
        }

    def _scores(self, read: Tensor, codes: Tensor) -> Tensor:
        """Return Σ_j ⟨E_{z_j}, h_j⟩ of the codes of each item and each document: [B, B]. codes: final ones, [B, t]."""
        scores: Tensor = read.new_zeros(len(codes), len(read))
        for j in range(codes.shape[1]):
            scores = scores + self._final(j)[codes[:, j]] @ read[:, j].T
        return scores

    def _logits(self, level: int, latent: Tensor) -> Tensor:
        logits: Tensor = self._unit * latent @ self._rows(level).T
        return logits

    def _rows(self, level: int) -> Tensor:
        """Return E of a level, float [K, d]: the rows of its tokens, in the measure of h."""
        first, last = self._vocabulary.span(level)
        rows: Tensor = self.model.get_output_embeddings().weight[first:last] * (self._scale / self._unit)
        return rows

    @torch.no_grad()
    def _set_rows(self, level: int, rows: Tensor) -> None:
        first, last = self._vocabulary.span(level)
        self.model.get_output_embeddings().weight[first:last] = rows * (self._unit / self._scale)

    @torch.no_grad()
    def _choose(self, level: int, latent: Tensor) -> Tensor:
        """Return the codes of latent vectors, int64 [B]."""
        rows = self._rows(level)
        cost = rows.square().sum(1) - 2 * latent @ rows.T + self._price(level)
        return cost.argmin(1)

    def _reach(self, share: float) -> None:
        """Start and end the positions that lie before a share of the stage."""
        levels = len(self._sizes)
        while (position := int(self.position)) < levels:
            own = share * levels - position  # of the position's own steps
            if not self.started and own >= WARM:
                self._start(position)
            elif self.started and own >= 1:
                self._end(position)
            else:
                return

    def _start(self, level: int) -> None:
        """Start the codes of a position from balanced k-means of the documents."""
        latent = torch.cat([h[:, level] for h in self._passes(level)]).numpy()
        size, seed = self._sizes[level], self._config.seed + level
        book = k_means(sample(latent, (size,), seed), size, seed)
        if len(book) < size:  # fewer distinct documents than codes
            book = np.concatenate([book, book[np.arange(size - len(book)) % len(book)]])
        book, price = balance(latent, book, self._config.identifiers.code_capacity)
        self._set_rows(level, torch.from_numpy(book).to(self.model.device))
        self._price(level).copy_(torch.from_numpy(price))
        self.started.fill_(1)

    def _end(self, level: int) -> None:
        """Choose the codes of all documents for good, and measure the reconstruction."""
        read = torch.cat([*self._passes(level)])
        latent, book = read[:, level].numpy(), self._rows(level).detach()
        array = np.ascontiguousarray(book.cpu().numpy())
        price = prices_of(latent, array, self._config.identifiers.code_capacity)
        self._price(level).copy_(torch.from_numpy(price))
        self._final(level).copy_(book)
        self.codes[:, level] = torch.from_numpy(costs(latent, array, price).argmin(axis=1))
        some = torch.arange(0, len(read), -(-len(read) // MEASURED))
        codes, read = self.codes[some, : level + 1], read[some].to(self.model.device)
        scores = self._unit * self._scores(read, codes)
        self.reconstruction[level] = F.cross_entropy(scores, torch.arange(len(some), device=scores.device))
        self.position.fill_(level + 1)
        self.started.fill_(0)

    @torch.no_grad()
    def _passes(self, level: int) -> Iterator[Tensor]:
        """Yield h of all documents at the positions up to a level, on the host: float [b, level + 1, d]."""
        was_training = self.model.training
        self.model.eval()
        for start in range(0, len(self._texts.documents), PASS):
            rows = slice(start, start + PASS)
            yield self.latents(self._texts.documents[rows], self.codes[rows, :level]).cpu()
        self.model.train(was_training)

    @torch.no_grad()
    def _keep_final(self) -> None:
        """Put the rows of earlier positions back, which decay and momentum have moved."""
        for level in range(int(self.position)):
            self._set_rows(level, self._final(level))

    def _price(self, level: int) -> Tensor:
        return self.get_buffer(f"price_{level}")

    def _final(self, level: int) -> Tensor:
        return self.get_buffer(f"final_{level}")
