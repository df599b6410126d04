"""Everything that can go wrong with a request.

    ServerError                 500   unexpected: a fault of the server
    ├── MalformedJsonError      400   not JSON, NaN or Infinity, broken Unicode
    ├── MalformedHttpError      400   not HTTP
    ├── AmbiguousLengthError    400   both Content-Length and Transfer-Encoding
    ├── UnauthorizedError       401   the path needs an API key, and the request names no valid one
    ├── NotFoundError           404
    ├── MethodNotAllowedError   405
    ├── BodyTimeoutError        408   the body arrived too slowly
    ├── IndexRefusedError       409   the index version on disk cannot be served
    ├── BundleRefusedError      409   the bundle on disk cannot be served
    ├── BodyTooLargeError       413
    ├── MediaTypeError          415   not sent as application/json
    ├── InvalidRequestError     422   JSON of the wrong shape, or over a limit
    ├── QueueFullError          429   with Retry-After
    ├── DeadlineUnreachableError 429  the request would miss its deadline in the queue; with Retry-After
    ├── ClientGoneError         499   the client closed the connection; nobody reads the answer
    ├── EngineFailedError       500   the model failed on the batch
    ├── NotReadyError           503   starting or shutting down
    ├── EngineUnavailableError  503   the engine process ended, and is being restarted
    ├── StoreUnavailableError   503   the store of people is down
    └── DeadlineError           504   no answer within `request_timeout_ms`

Each error is answered as problem JSON (RFC 9457) of at most `MAX_PROBLEM_BYTES` bytes. No message contains a value of
the request: what a client sent is repeated neither in the answer nor in the logs. Only the name of an unknown field is
in the answer. The two refusals of status 409, which only administrators can cause, name files of the server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from itertools import islice
from typing import Any, ClassVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from server.api.events import EventEntry, EventsRequest
from server.api.requests import BatchRequest, HistoryEntry, SearchEntry
from server.api.responses import FieldError, Problem

MAX_PROBLEM_BYTES = 2048
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
PROBLEM_JSON = "application/problem+json"
MAX_FIELD_ERRORS = 5
MAX_NAME_CHARS = 64  # of an unknown field
_MAX_TEXT = 120
_KNOWN = sorted(
    name
    for name in {
        *(*SearchEntry.model_fields, *HistoryEntry.model_fields, *BatchRequest.model_fields),
        *(*EventsRequest.model_fields, *EventEntry.model_fields),
    }
)
_MAX_DETAIL = 800
_GOES_ON = "What was served goes on. The reason: "


class ServerError(Exception):
    """Base class of all errors of a request.

    status: status code of the response.
    code: machine-readable name of the error, also a label of the metrics.
    title: one line for people, the same for every error of the class.
    detail: what went wrong with this request.
    errors: the fields of the body that are wrong.
    headers: additional headers of the response.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "unexpected"
    title: ClassVar[str] = "The server failed"

    def __init__(
        self, detail: str, *, errors: Iterable[FieldError] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})


class MalformedJsonError(ServerError):
    status, code, title = 400, "malformed_json", "The body is not valid JSON"


class MalformedHttpError(ServerError):
    status, code, title = 400, "malformed_http", "The request is not valid HTTP"


class AmbiguousLengthError(ServerError):
    status, code, title = 400, "ambiguous_length", "The request gives its length in two ways"


class UnauthorizedError(ServerError):
    status, code, title = 401, "unauthorized", "The key is not accepted"


class NotFoundError(ServerError):
    status, code, title = 404, "not_found", "There is nothing at this path"


class MethodNotAllowedError(ServerError):
    status, code, title = 405, "method_not_allowed", "The path does not answer this method"


class IndexRefusedError(ServerError):
    status, code, title = 409, "index_refused", "The index version cannot be served"

    def __init__(self, reason: Exception) -> None:
        super().__init__(_refusal(reason))


class BundleRefusedError(ServerError):
    status, code, title = 409, "bundle_refused", "The bundle cannot be served"

    def __init__(self, reason: Exception) -> None:
        super().__init__(_refusal(reason))


def _refusal(reason: Exception) -> str:
    """Return the detail of a refusal, on one line; only administrators see it."""
    line = " ".join(str(reason).split())
    shown = "".join(each if each.isprintable() else "?" for each in line)
    room = (_MAX_DETAIL - len(_GOES_ON)) // 2
    if len(shown.encode()) > 2 * room:  # the file is named at the start, what is wrong with it at the end
        shown = f"{shown.encode()[:room].decode(errors='ignore')}…{shown.encode()[-room:].decode(errors='ignore')}"
    return _GOES_ON + shown


class BodyTimeoutError(ServerError):
    status, code, title = 408, "body_timeout", "The body came too slowly"


class BodyTooLargeError(ServerError):
    status, code, title = 413, "body_too_large", "The body is too large"


class MediaTypeError(ServerError):
    status, code, title = 415, "media_type", "The body must be sent as application/json"


class InvalidRequestError(ServerError):
    status, code, title = 422, "invalid_request", "The request is not valid"

    @classmethod
    def at(cls, field: str, message: str) -> InvalidRequestError:
        """Return the error for one invalid field of the body."""
        return cls.of({field: message})

    @classmethod
    def of(cls, messages: Mapping[str, str]) -> InvalidRequestError:
        """Return the error for invalid fields of the body: what is wrong, by field."""
        return cls(
            "One or more fields have to be mended.",
            errors=[
                FieldError(where=f"body.{field}", message=message[: 4 * _MAX_TEXT])
                for field, message in messages.items()
            ],
        )


class QueueFullError(ServerError):
    status, code, title = 429, "queue_full", "The server is busy"

    def __init__(self, retry_after: int) -> None:
        super().__init__(
            f"Too many requests are waiting; try again in {retry_after} s.",
            headers={"Retry-After": str(retry_after)},
        )


class DeadlineUnreachableError(ServerError):
    status, code, title = 429, "deadline_unreachable", "The server is too busy to answer in time"

    def __init__(self, retry_after: int) -> None:
        super().__init__(
            f"What waits already would take longer than this request may; try again in {retry_after} s.",
            headers={"Retry-After": str(retry_after)},
        )


class ClientGoneError(ServerError):
    status, code, title = 499, "client_gone", "The client hung up"


class EngineFailedError(ServerError):
    status, code, title = 500, "engine_failed", "The model failed"


class NotReadyError(ServerError):
    status, code, title = 503, "not_ready", "The server is not ready"


class EngineUnavailableError(ServerError):
    status, code, title = 503, "engine_unavailable", "The model is not there"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Retry-After": "1"})


class StoreUnavailableError(ServerError):
    status, code, title = 503, "store_unavailable", "The store of people is not there"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Retry-After": "1"})


class DeadlineError(ServerError):
    status, code, title = 504, "deadline_exceeded", "The answer took too long"


def problem(error: ServerError, request_id: str) -> Problem:
    """Return the error as a problem document."""
    return Problem(
        type=f"urn:gems:problem:{error.code}",
        title=error.title,
        status=error.status,
        detail=error.detail[:_MAX_DETAIL],
        request_id=request_id,
        errors=error.errors[:MAX_FIELD_ERRORS],
    )


def problem_response(error: ServerError, request_id: str) -> Response:
    """Return the error as a response with problem JSON."""
    return Response(
        problem(error, request_id).model_dump_json(exclude_defaults=True),
        error.status,
        headers=error.headers,
        media_type=PROBLEM_JSON,
    )


def as_server_error(error: Exception) -> ServerError:
    """Convert any exception to a `ServerError`. An unexpected exception becomes a plain 500, without its message."""
    if isinstance(error, ServerError):
        return error
    if isinstance(error, RequestValidationError):
        found = [_field_error(each) for each in islice(error.errors(), MAX_FIELD_ERRORS)]
        return InvalidRequestError("One or more fields have to be mended.", errors=found)
    if isinstance(error, HTTPException):
        return _from_routing(error)
    return ServerError("The request could not be answered; the log holds the reason under this request id.")


def _field_error(error: Mapping[str, Any]) -> FieldError:
    """Convert an error of pydantic. The values that were sent are not kept."""
    path = list(error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":  # the last part is a name chosen by the client
        path, message = path[:-1], _unknown(str(path[-1]))
    if "filter" in path:  # attribute names are chosen by the client, too
        path = path[: path.index("filter") + 1]
    return FieldError(where=".".join(str(part) for part in path)[:_MAX_TEXT], message=message[:_MAX_TEXT])


def _unknown(name: str) -> str:
    """Name an unknown field, in printable ASCII, and the known one that was probably meant."""
    start = name[: MAX_NAME_CHARS + 1]
    shown = ascii(start)[1:-1]
    if len(shown) > MAX_NAME_CHARS:
        shown = shown[: MAX_NAME_CHARS - 1] + "…"
    meant = [known for known in get_close_matches(start, _KNOWN, 1) if known != start]
    return f"unknown field '{shown}'" + (f"; did you mean '{meant[0]}'?" if meant else "; see /docs")


def _from_routing(error: HTTPException) -> ServerError:
    if error.status_code == 404:
        return NotFoundError("See /docs for the paths that exist.")
    if error.status_code == 405:
        return MethodNotAllowedError("The Allow header names the methods that it answers.")
    if error.status_code < 500:
        return InvalidRequestError("The request could not be read.")
    return ServerError("The request could not be answered.")


def _methods(request: Request) -> list[str]:
    """Return the methods that the path of a request answers; Starlette names only those of its first route."""
    return [
        method
        for method in METHODS
        if any(r.matches({**request.scope, "method": method})[0] is Match.FULL for r in request.app.routes)
    ]


def install(app: FastAPI) -> None:
    """Make the application answer every error as problem JSON."""

    async def answer(request: Request, error: Exception) -> Response:
        known = as_server_error(error)
        if isinstance(known, MethodNotAllowedError):
            known.headers["Allow"] = ", ".join(_methods(request))
        request.state.problem = known.code  # for the metrics
        return problem_response(known, request.state.request_id)

    for kind in (ServerError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)
