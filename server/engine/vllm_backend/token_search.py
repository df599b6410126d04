"""Beam search for one request with a model behind an interface: "what may follow these tokens?".

    level 0:            the prompt                         → the beam of level 0
    level j = 1 .. D−1: the prompt and each hypothesis     → the beam of level j

D is the number of codes that the request wants written. Unlike `Search` it holds no keys and values: the model behind
the interface caches the prompt. No question is asked about hypotheses that have ended early (spelled identifiers): all
that follows them is certain.

The prefixes of the pool are further questions of their level, for the codes of its items alone: a hypothesis' question
returns only the best codes that lead to allowed items, which need not be theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.sequence.vocabulary import IdentifierVocabulary
from index.trie.allowed import Allowed
from server.engine.beam import Beam, advance
from server.engine.contract import ENGINE_STAGES, EngineError, RankRequest
from server.engine.pool import Pool
from server.engine.vllm_backend.legal_tokens import LegalTokens


@dataclass(frozen=True, eq=False, slots=True)
class Question:
    """A question: which of the legal tokens may follow `tokens`? `row` is for `TokenSearch.answer`."""

    row: int
    tokens: list[int]
    legal: LegalTokens


class TokenSearch:
    """Beam search that asks, and the scores of a pool.

    Call `ask`, `answer` each question, and so on until `ask` has none.

    normalisation: `level` or `vocabulary`, see `BundleInfo`. rows: output rows of the model.
    """

    def __init__(
        self,
        request: RankRequest,
        allowed: Allowed,
        vocabulary: IdentifierVocabulary,
        normalisation: str,
        rows: int,
    ) -> None:
        self.request = request
        self.allowed = allowed
        self.beam = Beam.root()
        self.level = 0
        self.cached_tokens = 0
        self.state: list[float] = []  # vLLM does not give it
        self.seconds = dict.fromkeys(ENGINE_STAGES, 0.0)
        self.open_questions: dict[str, Question] = {}  # for the caller, by its own names
        self._open = 0
        self._vocabulary = vocabulary
        self._levels = request.written(vocabulary.levels)
        self._pool = Pool(request.pool, allowed.trie, self._levels, vocabulary.end)
        self._whole = (0, rows) if normalisation == "vocabulary" else None
        self._written = np.zeros((1, 0), np.int64)  # tokens of each hypothesis, [w, level]
        self._row = np.zeros(1, np.int64)  # of each hypothesis in `_log_probs`; −1 for one that has ended
        # Rows of hypotheses, then those of the pool's prefixes. None: nothing was asked on this level yet.
        self._log_probs: NDArray[np.float32] | None = None
        self._pool_row = 0  # the first of the pool

    @property
    def done(self) -> bool:
        return self.level == self._levels

    @property
    def pool_scores(self) -> list[float]:
        scores: list[float] = self._pool.scores.tolist()
        return scores

    @property
    def answered(self) -> bool:
        """Whether each question of the last `ask` has its answer."""
        return self._open == 0

    def ask(self) -> list[Question]:
        """Return the next questions, after all earlier ones were answered; none when the search is done."""
        while not self.done:
            if self._log_probs is not None:
                self._advance(self._log_probs)
            elif questions := self._questions():
                self._open = len(questions)
                return questions
        return []

    def answer(self, row: int, tokens: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
        """Take log p of the tokens of a question. Raises `EngineError` if one is not finite."""
        if not np.isfinite(scores).all():
            raise EngineError("the model's scores are not finite; its weights are damaged or have diverged")
        assert self._log_probs is not None
        self._log_probs[row, tokens - self._vocabulary.first_code[self.level]] = scores
        self._open -= 1

    def _questions(self) -> list[Question]:
        beam, level = self.beam, self.level
        live = np.arange(len(beam.nodes))
        if level and self._vocabulary.end is not None:
            live = np.flatnonzero(beam.codes != self._vocabulary.end)
        parent, _, code = self.allowed.expand(level, beam.nodes[live])
        begin = np.searchsorted(parent, np.arange(len(live) + 1))
        # What `advance` looks at lies among as many of one hypothesis as of all.
        most = self.request.width + len(self.allowed.excluded)
        self._row = np.full(len(beam.nodes), -1)
        self._row[live] = np.arange(len(live))
        nodes, items = self._pool.prefixes(level)
        self._pool_row = len(live)
        shape = len(live) + len(nodes), self._vocabulary.codebook_sizes[level]
        self._log_probs = np.full(shape, -np.inf, np.float32)
        questions = []
        for row, hypothesis in enumerate(live):
            codes = code[begin[row] : begin[row + 1]]
            if len(codes):
                questions.append(self._question(row, self._written[hypothesis], codes, most))
        for row, (node, item) in enumerate(zip(nodes, items, strict=True), start=len(live)):
            codes = np.unique(self._pool.codes[self._pool.nodes[:, level] == node, level])
            written = self._pool.codes[item, :level] + self._vocabulary.first_code[:level]
            questions.append(self._question(row, written, codes, len(codes)))
        return questions

    def _question(
        self, row: int, written: NDArray[np.int64], codes: NDArray[np.int64], most: int
    ) -> Question:
        """Ask for the best `most` of these codes, ascending, behind the tokens that were written."""
        tokens = codes + self._vocabulary.first_code[self.level]
        first, last = self._whole or self._vocabulary.span(self.level)
        legal = LegalTokens(tokens.astype(np.int32), min(most, len(tokens)), first, last)
        return Question(row, [*self.request.prompt, *written.tolist()], legal)

    def _advance(self, log_probs: NDArray[np.float32]) -> None:
        self.beam = advance(self.level, self.beam, log_probs, self._row, self.request.width, self.allowed)
        self._pool.add(self.level, log_probs[self._pool_row :])
        token = self.beam.codes + self._vocabulary.first_code[self.level]
        self._written = np.column_stack([self._written[self.beam.parents], token])
        self._log_probs = None
        self.level += 1
