"""Ranking without a server: requests in, the server's answers out, batch by batch, in this process.

Nothing here ranks: a request is read, put to the engine and answered by the code of `server.ranking`. What protects a
server from its clients does not hold: no queue, no deadline, and no caps on `limit`, `beam_width` and history. An
engine that fails ends the work instead of leaving the answer to popularity.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from index.bundle.bundle import Bundle
from index.sequence.events import Task
from server.api.errors import InvalidRequestError, as_server_error
from server.api.requests import HISTORY_CEILING, ITEMS_CEILING, RecommendRequest, SearchRequest
from server.api.responses import Answer
from server.engine.contract import Engine
from server.engine.process.open import open_engine
from server.ranking.answer import answer_of
from server.ranking.parsed_request import ParsedRequest, check_caps, parse
from server.ranking.ranked import Question, rank_by_popularity
from server.serving.deployment import popularity_of
from server.settings import Settings

BODIES: Mapping[Task, type[RecommendRequest]] = {
    Task.SEARCH: SearchRequest,
    Task.RECOMMENDATION: RecommendRequest,
}


def body_of(task: Task, fields: Mapping[str, Any]) -> RecommendRequest:
    """Return the body of a request, validated as that of its endpoint. Raises `InvalidRequestError`."""
    try:
        return BODIES[task].model_validate(fields)
    except ValidationError as error:
        raise as_server_error(RequestValidationError(error.errors())) from None


class OfflineReader:
    """Reads requests with the index version that a bundle has now, as a server with these settings would."""

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        self.bundle = bundle
        self._popularity = popularity_of(bundle)
        without_caps = {
            "max_limit": ITEMS_CEILING,
            "max_beam_width": ITEMS_CEILING,
            "max_history": HISTORY_CEILING,
            "request_timeout_ms": math.inf,
        }
        self._settings = settings.model_copy(update=without_caps)

    def read(self, body: RecommendRequest) -> ParsedRequest:
        """Read a request. Raises `InvalidRequestError` for what a server would refuse."""
        check_caps(body, self._settings)
        if body.user_id is not None:
            raise InvalidRequestError.at(
                "user_id", "nobody is remembered outside of a server; give 'history'"
            )
        return parse(body, self.bundle, self._popularity, self._settings, time.perf_counter())


class OfflineRanker:
    """Answers what a reader reads.

    engine: opened on the reader's bundle and index version.
    """

    def __init__(self, reader: OfflineReader, engine: Engine) -> None:
        self._reader = reader
        self.engine = engine

    @classmethod
    def open(cls, reader: OfflineReader, settings: Settings) -> OfflineRanker:
        """Open the engine of a reader's bundle in this process. Raises `EngineError`.

        There is no prefix cache: people hardly share histories, and scores must not depend on what was ranked before,
        not even in their last digits.
        """
        if settings.threads:
            torch.set_num_threads(settings.threads)
        bundle = reader.bundle
        options = replace(settings.engine_options(), cache_bytes=0)
        index = bundle.index
        searches = index.named(Task.SEARCH).everything
        return cls(reader, open_engine(bundle.path, bundle.info, index.trie, index.living, options, searches))

    def answers(self, bodies: Sequence[RecommendRequest]) -> list[Answer]:
        """Rank a batch, in order. The answers hold no explanations and no request ids.

        Raises `InvalidRequestError`, `EngineError`, and `ServerError` for scores that are not numbers.
        """
        started = time.perf_counter()
        parsed = [self._reader.read(body) for body in bodies]
        questions = [None if each.starts_cold else Question.of(each) for each in parsed]
        asked = [each.request for each in questions if each is not None]
        rankings = iter(self.engine.rank(asked) if asked else [])
        answers = []
        for each, question in zip(parsed, questions, strict=True):
            if question is not None:
                ranked = question.ranked(next(rankings))
            else:
                assert each.popularity is not None  # it starts cold
                ranked = rank_by_popularity(each, each.popularity, "cold_start")
            answers.append(answer_of(each, ranked, None, "", started))
        return answers
