"""The OpenAPI document: errors are described as what they are, problem JSON."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from server.errors import (
    PROBLEM_JSON,
    BodyTooLargeError,
    DeadlineError,
    IndexRefusedError,
    InvalidRequestError,
    MalformedJsonError,
    MediaTypeError,
    NotFoundError,
    NotReadyError,
    QueueFullError,
    ServerError,
    UnauthorizedError,
)
from server.schemas import Problem

_RANKING = (
    MalformedJsonError,
    BodyTooLargeError,
    MediaTypeError,
    InvalidRequestError,
    QueueFullError,
    ServerError,
    NotReadyError,
    DeadlineError,
)


def problems(*, ranking: bool) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: what a ranking can fail with, or only not being ready."""
    kinds = _RANKING if ranking else (NotReadyError,)
    return {kind.status: {"model": Problem, "description": kind.title} for kind in kinds}


def administration_problems() -> dict[int | str, dict[str, Any]]:
    """The `responses` of an administration route."""
    kinds: tuple[type[ServerError], ...] = (UnauthorizedError, NotFoundError, IndexRefusedError)
    return {kind.status: {"model": Problem, "description": kind.title} for kind in kinds}


def install(app: FastAPI) -> None:
    """FastAPI describes every response as application/json; name the errors' own media type."""
    describe = app.openapi

    def described() -> dict[str, Any]:
        first = app.openapi_schema is None
        schema = describe()
        if first:
            for path in schema["paths"].values():
                for operation in path.values():
                    _rename(operation["responses"])
        return schema

    app.openapi = described  # type: ignore[method-assign]


def _rename(responses: dict[str, Any]) -> None:
    for status, response in responses.items():
        if int(status) >= 400:
            response["content"] = {PROBLEM_JSON: response["content"].pop("application/json")}
