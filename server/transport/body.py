"""Request bodies: bounded in size and time, and strictly JSON.

FastAPI itself reads a body of any size, and answers 500 to NaN, Infinity and lone surrogates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from server.api.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    ClientGoneError,
    MalformedJsonError,
    MediaTypeError,
)
from server.settings import Settings


async def read_body(request: Request, max_bytes: int, seconds: float) -> bytes:
    """Return the whole body of a request.

    max_bytes: largest body that is read.
    seconds: time within which the whole body must arrive.
    Raises `BodyTooLargeError` as soon as the body is known to exceed `max_bytes`, `BodyTimeoutError` if it is not
    complete in time, and `ClientGoneError` if the client disconnects.
    """
    too_large = BodyTooLargeError(f"At most {max_bytes} bytes are read.", headers={"Connection": "close"})
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 18 or int(announced) > max_bytes):
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise too_large
    except TimeoutError as error:
        raise BodyTimeoutError(
            f"The body has to come within {seconds:g} s.", headers={"Connection": "close"}
        ) from error
    except ClientDisconnect as error:
        raise ClientGoneError("The connection closed within the body.") from error
    return bytes(body)


def parse_json(body: bytes) -> Any:
    """Parse JSON strictly by RFC 8259: no NaN, no Infinity, no lone surrogates, valid UTF-8, bounded depth.

    Raises `MalformedJsonError`.
    """
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:  # its message names a position, and no part of the input
        raise MalformedJsonError(f"{error}.") from error


def check_media_type(request: Request) -> None:
    """Raise `MediaTypeError` unless the body is sent as `application/json`."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise MediaTypeError("Send the header 'Content-Type: application/json'.")


class _Parsed(Request):
    """A request with a body that is already read and parsed."""

    def __init__(self, request: Request, body: bytes, value: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._read = body
        self._value = value

    async def body(self) -> bytes:
        return self._read

    async def json(self) -> Any:
        return self._value


class JsonRoute(APIRoute):
    """A FastAPI route that reads its body with the functions above, within the limits of `app.state.settings`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def read_then_handle(request: Request) -> Response:
            check_media_type(request)
            settings: Settings = request.app.state.settings
            body = await read_body(request, settings.max_body_bytes, settings.body_seconds)
            return await handle(_Parsed(request, body, parse_json(body)))

        return read_then_handle
