"""The OpenAPI document: descriptions of errors as problem JSON, and links between answers and requests."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from server.api.errors import (
    PROBLEM_JSON,
    BodyTimeoutError,
    BodyTooLargeError,
    DeadlineError,
    EngineUnavailableError,
    IndexRefusedError,
    InvalidRequestError,
    MalformedJsonError,
    MediaTypeError,
    NotFoundError,
    NotReadyError,
    QueueFullError,
    ServerError,
    StoreUnavailableError,
    UnauthorizedError,
)
from server.api.responses import Problem

_RANKING = (
    MalformedJsonError,
    UnauthorizedError,
    BodyTimeoutError,
    BodyTooLargeError,
    MediaTypeError,
    InvalidRequestError,
    QueueFullError,
    ServerError,
    NotReadyError,
    DeadlineError,
)
_EVENTS = (
    MalformedJsonError,
    UnauthorizedError,
    NotFoundError,
    BodyTimeoutError,
    BodyTooLargeError,
    MediaTypeError,
    InvalidRequestError,
    QueueFullError,
    StoreUnavailableError,
)


def ranking_problems() -> dict[int | str, dict[str, Any]]:
    """Return the error `responses` of a ranking route."""
    return _responses(*_RANKING)


def lookup_problems() -> dict[int | str, dict[str, Any]]:
    """Return the error `responses` of the item lookup."""
    return _responses(UnauthorizedError, InvalidRequestError)


def events_problems() -> dict[int | str, dict[str, Any]]:
    """Return the error `responses` of the route that takes events."""
    return _responses(*_EVENTS)


def person_problems() -> dict[int | str, dict[str, Any]]:
    """Return the error `responses` of the routes about one person."""
    return _responses(UnauthorizedError, NotFoundError, InvalidRequestError, StoreUnavailableError)


def readiness_problems() -> dict[int | str, dict[str, Any]]:
    """Return the error `responses` of the readiness check."""
    return _responses(NotReadyError)


def administration_problems() -> dict[int | str, dict[str, Any]]:
    """Return the error `responses` of an administration route."""
    return _responses(UnauthorizedError, NotFoundError, IndexRefusedError, EngineUnavailableError)


def _responses(*kinds: type[ServerError]) -> dict[int | str, dict[str, Any]]:
    return {kind.status: {"model": Problem, "description": kind.title} for kind in kinds}


def onwards() -> dict[int | str, dict[str, Any]]:
    """Return the `responses` entry with links: the first item of an answer is the history of the next request."""
    history = [{"item_id": "$response.body#/items/0/item_id"}]
    bodies: dict[str, dict[str, Any]] = {
        "search": {"query": "more like this", "history": history},
        "recommend": {"history": history},
        "batch": {"requests": [{"task": "recommendation", "history": history}]},
    }
    links = {
        f"first_item_to_{operation}": {"operationId": operation, "requestBody": body}
        for operation, body in bodies.items()
    }
    return {200: {"links": links}}


def install(app: FastAPI) -> None:
    """Describe errors as `application/problem+json`; FastAPI describes every response as `application/json`."""
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
