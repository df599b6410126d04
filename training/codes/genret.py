"""GenRet: codes by a discrete autoencoder inside a T5, one position after another (Sun et al., NeurIPS 2023).

One T5 reads documents and queries (`documents`). Its decoder has read the codes z_1 … z_{t−1} of an item when it
writes the latent vector h_t. The codes of position t are the rows E of their tokens, so that the model that makes the
codes is the one that retrieves by them:

    P(z_t = k | z_{<t}, text) = softmax_k(u ⟨h_t, E_k⟩)           u = 1 / √d

A document's z_t tells it from those with the same z_{<t}, whose set is S. So its code is that of its difference from
their mean m:

    z_t = argmax_k 2 ⟨h_t − m, E_k⟩ − p_k                         p: prices of popular codes (`balancing`)

Position t is learned in two parts. In the first, of `WARM` of its steps,

    ½ contrastive + ½ code(<t)

then its codes start from balanced k-means of h_t − m, and in the second

    ½ contrastive + ½ commitment + ½ code(≤t) + 0.1 reconstruction

    contrastive     −log softmax over S of u ⟨h_t(query), h_t(document)⟩, at the query's own document
    code            −log P(z | query), mean over positions
    commitment      −log P(z_t | document)
    reconstruction  −log softmax over S of u ⟨E_{z_t}, sg[h_t(document)]⟩, at the codes' own document; E_{z_t} passes
                    its gradient straight through to h_t

S is that of the batch, which holds several documents of each prefix. The codes are chosen again in the middle of the
second part and at its end. From then on neither they nor the rows E of the position change.

Later items are named by their vectors: the map from item vectors to (h_1 − m, …, h_T − m) by ridge regression, and the
codes of each position in dimensions of their own.

Differences from the paper: codes are chosen for all documents at once, with prices from Sinkhorn iterations, in place
of batch by batch; rates and batch size are those of the training.
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
MARKS = (WARM, (1 + WARM) / 2, 1.0)  # where codes start, are chosen again, and become final
CONTRASTIVE, COMMITMENT, CODE, RECONSTRUCTION = 0.5, 0.5, 0.5, 0.1
PASS = 256  # documents of a pass over all of them
MEASURED = 1024  # documents whose reconstruction is measured

Batch = tuple[list[int], list[list[int]]]  # rows of items, and a query of each


class GenRet(CodeLearner):
    """The T5, the codes of the documents, and the place in the sequence of positions.

    codes: int64 [N, T]; those before `position` are final.
    position: the position t that is learned, from 0; T when all are.
    passed: number of its `MARKS` that are passed.
    reconstruction: the loss after each position, float [T].
    """

    codes: Tensor
    position: Tensor
    passed: Tensor
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
        super().__init__(prepared, config)
        self._vocabulary = prepared.vocabulary
        self._texts = Documents.of(prepared.encoder(config), prepared.tokenizer, catalogue, histories)
        self._sizes = self._vocabulary.codebook_sizes[:-1]
        width = int(self.model.config.d_model)
        self._unit = width**-0.5
        self._scale = output_scale(self.model)
        self.register_buffer("codes", torch.zeros(len(catalogue), len(self._sizes), dtype=torch.long))
        self.register_buffer("position", torch.tensor(0))
        self.register_buffer("passed", torch.tensor(0))
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
            prefixes = groups_of(self.codes[:, : int(self.position)].cpu().numpy())
            yield self._texts.draw(self._config.optimiser.batch_size, prefixes, rng)
            step += 1

    def step(self, batch: Batch, share: float) -> dict[str, float]:
        self._reach(share)
        rows, queries = batch
        t = int(self.position)
        codes = self.codes[rows]
        asked = self.latents(queries, codes[:, :t])
        read = self.latents([self._texts.documents[row] for row in rows], codes[:, :t])[:, t]
        others = (codes[:, None, :t] != codes[:, :t]).any(2)  # documents outside of S
        own = torch.arange(len(rows), device=codes.device)

        def among_s(vectors: Tensor, documents: Tensor) -> Tensor:
            return F.cross_entropy((self._unit * vectors @ documents.T).masked_fill(others, -torch.inf), own)

        losses = [CONTRASTIVE * among_s(asked[:, t], read)]
        figures = {"position": t + 1.0, "contrastive": float(losses[0].detach()) / CONTRASTIVE}
        known = t + int(self.passed > 0)  # positions that have codes
        if known > t:
            commitment = F.cross_entropy(self._logits(t, read), codes[:, t])
            coded = straight_through(read, self._rows(t)[codes[:, t]])
            reconstruction = among_s(coded, read.detach())
            losses += [COMMITMENT * commitment, RECONSTRUCTION * reconstruction]
            figures |= {
                "commitment": float(commitment.detach()),
                "reconstruction": float(reconstruction.detach()),
            }
        if known:
            each = [F.cross_entropy(self._logits(j, asked[:, j]), codes[:, j]) for j in range(known)]
            losses.append(CODE * torch.stack(each).mean())
            figures["code"] = float(losses[-1].detach()) / CODE
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        self.optimisers.step(rate_factor(share, self._config.optimiser.warmup, 1.0))
        self._keep_final()
        return figures

    def finish(self) -> tuple[Codebooks, NDArray[np.int32], dict[str, float]]:
        self._reach(1.0)
        levels = range(len(self._sizes))
        read = [self._differences(level, self._latents_of_all(level))[0] for level in levels]
        width = read[0].shape[1]
        books = []
        for level, size in enumerate(self._sizes):
            book = np.zeros((size, width * len(self._sizes)), np.float32)
            book[:, level * width : (level + 1) * width] = self._final(level).cpu().numpy()
            books.append(book)
        prices = tuple(self._price(level).cpu().numpy() for level in levels)
        encoder = affine_map(self._vectors, np.concatenate(read, axis=1))
        figures = {f"reconstruction {level + 1}": float(self.reconstruction[level]) for level in levels}
        figures["logged queries"] = float(self._texts.logged)
        return (
            Codebooks((encoder,), tuple(books), prices),
            self.codes.cpu().numpy().astype(np.int32),
            figures,
        )

    def latents(self, texts: Sequence[Sequence[int]], codes: Tensor) -> Tensor:
        """Return h of texts after each of some codes, float [B, t + 1, d].

        codes: of their items, int64 [B, t].
        """
        ids, attended = padded(texts, self.model.device)
        first = torch.from_numpy(self._vocabulary.first_code[: codes.shape[1]]).to(codes)
        start = codes.new_full((len(codes), 1), start_token(self.model))
        written = torch.cat([start, codes + first], 1)
        return encoder_decoder_states(self.model, ids, attended, written) / self._scale

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
    def _keep_final(self) -> None:
        """Put the rows of earlier positions back, which gradients, decay and momentum have moved."""
        for level in range(int(self.position)):
            self._set_rows(level, self._final(level))

    def _reach(self, share: float) -> None:
        """Pass the marks of all positions that lie before a share of the stage."""
        levels = len(self._sizes)
        while (level := int(self.position)) < levels and share * levels - level >= MARKS[int(self.passed)]:
            self._choose(level)
            self.passed += 1
            if int(self.passed) == len(MARKS):
                self._final(level).copy_(self._rows(level).detach())
                self.position += 1
                self.passed.fill_(0)

    def _choose(self, level: int) -> None:
        """Choose the codes of all documents at a position, and measure the reconstruction by them.

        The first time, the codes start from balanced k-means.
        """
        size, capacity = self._sizes[level], self._config.identifiers.code_capacity
        latent = self._latents_of_all(level)
        vectors, several = self._differences(level, latent)
        some = vectors[several] if several.any() else vectors
        if int(self.passed):
            book = np.ascontiguousarray(self._rows(level).detach().cpu().numpy())
            square = (book**2).sum(axis=1)
            price = square.max() - square  # leaves −2 ⟨h − m, E⟩ of the costs
            price += prices_of(costs(some, book, price), capacity)
        else:
            book = k_means(sample(some, (size,), self._config.seed + level), size, self._config.seed + level)
            book = book[np.arange(size) % len(book)]  # repeated, if there are fewer distinct vectors
            book, price = balance(some, book, capacity)
            self._set_rows(level, torch.from_numpy(book).to(self.model.device))
        self._price(level).copy_(torch.from_numpy(price))
        self.codes[:, level] = torch.from_numpy(costs(vectors, book, price).argmin(axis=1))
        self.reconstruction[level] = self._reconstruction(level, latent, book)

    def _reconstruction(self, level: int, latent: NDArray[np.float32], book: NDArray[np.float32]) -> float:
        """Return the loss with which codes of a level tell a document from those of the same prefix, in nats."""
        codes = self.codes.cpu().numpy()
        prefix, losses = groups_of(codes[:, :level]), []
        for row in range(0, len(latent), -(-len(latent) // MEASURED)):
            same = np.flatnonzero(prefix == prefix[row])
            scores = torch.from_numpy(self._unit * latent[same] @ book[codes[row, level]])
            losses.append(-float(scores.log_softmax(0)[int(np.searchsorted(same, row))]))
        return float(np.mean(losses))

    def _differences(
        self, level: int, latent: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return h − m of a position, float32 [N, d], and which documents share their prefix with others, bool [N]."""
        group = groups_of(self.codes[:, :level].cpu().numpy())
        count = np.bincount(group)
        total = np.zeros((len(count), latent.shape[1]))
        np.add.at(total, group, latent)
        mean = (total / count[:, None]).astype(np.float32)
        return latent - mean[group], count[group] > 1

    @torch.no_grad()
    def _latents_of_all(self, level: int) -> NDArray[np.float32]:
        """Return h of all documents at a position, float32 [N, d]."""
        was_training = self.model.training
        self.model.eval()
        found = np.empty((len(self.codes), int(self.model.config.d_model)), np.float32)
        by_length = np.argsort(
            [len(text) for text in self._texts.documents], kind="stable"
        )  # hardly any padding
        for start in range(0, len(found), PASS):
            rows = by_length[start : start + PASS].tolist()
            texts = [self._texts.documents[row] for row in rows]
            found[rows] = self.latents(texts, self.codes[rows, :level])[:, -1].cpu().numpy()
        self.model.train(was_training)
        return found

    def _price(self, level: int) -> Tensor:
        return self.get_buffer(f"price_{level}")

    def _final(self, level: int) -> Tensor:
        return self.get_buffer(f"final_{level}")


def groups_of(prefixes: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return a number for each row that equal rows share, from 0: [N, t] → int64 [N]."""
    if not prefixes.shape[1]:
        return np.zeros(len(prefixes), np.int64)
    groups: NDArray[np.int64] = np.unique(prefixes, axis=0, return_inverse=True)[1].reshape(-1)
    return groups
