"""Settings of the server: environment variables prefixed `GEMS_`, overridden by the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.api.paths import NAMED, VERSION
from server.api.requests import BATCH_CEILING, HISTORY_CEILING, QUERY_CEILING, Fallback
from server.engine.options import DEFAULTS, BackEndName, Device, EngineOptions, Precision

MAX_THREADS = 1024


def split(setting: str) -> list[str]:
    """Return the non-empty parts of a comma-separated setting."""
    return [part.strip() for part in setting.split(",") if part.strip()]


def misspelt(names: Iterable[str]) -> str | None:
    """Return what is wrong with the first variable that was meant as a setting and is none; None if there is none.

    names: of environment variables. Others that begin with `GEMS_` may be somebody else's (a Kubernetes service named
    gems has GEMS_SERVICE_HOST), so only what is much like a setting, or speaks of a key, counts.
    """
    known = {f"GEMS_{name.upper()}" for name in Settings.model_fields}
    for name in sorted(names):
        if name.startswith("GEMS_") and name not in known:
            near = get_close_matches(name, sorted(known), 1, cutoff=0.85)
            if near or "KEY" in name:
                meant = near[0] if near else "GEMS_API_KEYS or GEMS_ADMIN_KEY"
                return f"{name} is no setting; did you mean {meant}?"
    return None


class SettingsError(ValueError):
    """The settings cannot be used. The message names the first that is wrong."""


class Settings(BaseSettings):
    """Every setting of the server and its default. `docs/api.md` describes each of them; a test checks that."""

    model_config = SettingsConfigDict(env_prefix="GEMS_", frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)  # 0: any free port; the log reports it
    engine: BackEndName = "torch"
    threads: int = Field(0, ge=0, le=MAX_THREADS)  # of the engine; 0: as many as torch chooses
    root_path: str = ""  # prefix of a proxy
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    tracing: Literal["off", "on"] = "off"  # OpenTelemetry, an optional extra; OTEL_* variables configure it

    admin_key: SecretStr = SecretStr("")  # empty: no administration over HTTP
    api_keys: SecretStr = SecretStr("")  # comma-separated; empty: ranking requests need none
    cors_origins: str = ""  # comma-separated; empty: no web page of another origin may call the server
    playground: bool = True  # the web page at /

    max_batch_size: int = Field(8, ge=1)
    batch_window_ms: float = Field(2.0, ge=0, le=1000, allow_inf_nan=False)
    max_batch_tokens: int = Field(DEFAULTS.max_batch_tokens, ge=1)
    # Largest pass, in tokens, that requests may join; 0: never.
    join_rows: int = Field(DEFAULTS.join_rows, ge=0)
    cache_mib: int = Field(1024, ge=0)  # the prefix cache: keys and values of earlier prompts; 0: no cache
    device: Device = "cpu"  # the model runs on it
    cuda_graphs: int = Field(32, ge=0)  # CUDA graphs that are kept, with device cuda
    precision: Precision = "float32"  # the model's weights
    queue_limit: int = Field(8, ge=1)
    request_timeout_ms: float = Field(10_000, gt=0, allow_inf_nan=False)
    stall_seconds: float = Field(60.0, gt=0, allow_inf_nan=False)  # a silent engine is replaced after it
    fallback: Fallback = "none"

    default_limit: int = Field(10, ge=1)
    max_limit: int = Field(100, ge=1)
    default_beam_width: int = Field(50, ge=1)
    max_beam_width: int = Field(500, ge=1)

    max_history: int = Field(20_000, ge=1, le=HISTORY_CEILING)
    max_query_chars: int = Field(500, ge=1, le=QUERY_CEILING)
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1)
    max_batch_requests: int = Field(32, ge=1, le=BATCH_CEILING)
    max_explained: int = Field(20, ge=1)

    people_store: str = ""  # path of a file; empty: nobody is remembered
    people_events: int = Field(1000, ge=1, le=HISTORY_CEILING)  # kept of each person, the newest
    people_days: float = Field(
        0, ge=0, le=36_500, allow_inf_nan=False
    )  # for which an event is kept; 0: always

    idle_seconds: float = Field(
        5.0, ge=0.1, allow_inf_nan=False
    )  # until the whole head of the next request has arrived
    body_seconds: float = Field(
        8.0, ge=0.1, allow_inf_nan=False
    )  # from then until the whole body has arrived

    drain_seconds: float = Field(
        2.0, ge=0, allow_inf_nan=False
    )  # after SIGTERM: not ready, but still answering
    shutdown_seconds: int = Field(10, ge=1)  # for requests in flight after the listener has closed

    @field_validator("root_path")
    @classmethod
    def _is_prefix(cls, value: str) -> str:
        """Refuse what is no path, or what could be taken for a path of the server itself."""
        if not re.fullmatch(r"(/[\w.~-]+)*", value, re.ASCII) or {".", ".."} & set(value.split("/")):
            raise ValueError(
                "GEMS_ROOT_PATH is a path such as /gems: '/' in front, none at the end, and letters, digits, "
                "'.', '_', '~' and '-' between"
            )
        own = {path.split("/")[1] for path in (*NAMED, VERSION)}
        if value and value.split("/")[1] in own:
            raise ValueError(
                f"GEMS_ROOT_PATH must not begin like a path of the server itself ({', '.join(sorted(own - {''}))})"
            )
        return value

    @field_validator("api_keys", "admin_key", "cors_origins")
    @classmethod
    def _holds_something(cls, value: SecretStr | str, info: ValidationInfo) -> SecretStr | str:
        """Fail closed: a value without any key or origin was meant to hold one."""
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        held = text.strip() if info.field_name == "admin_key" else split(text)
        if text and not held:
            name = f"GEMS_{str(info.field_name).upper()}"
            raise ValueError(
                f"{name} is set but holds nothing; unset it, or check the variables it is made from"
            )
        return value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: str) -> str:
        """Refuse what no browser sends as an origin, and would therefore never match."""
        for origin in split(value):
            if origin != "*" and not re.fullmatch(r"https?://[^/?#@\s]+", origin):
                raise ValueError(
                    f"GEMS_CORS_ORIGINS: {origin!r} is no origin; write https://shop.example, without a path"
                )
        if "*" in split(value) and len(split(value)) > 1:
            raise ValueError("GEMS_CORS_ORIGINS: '*' allows all origins; write it alone, or name the origins")
        return value

    @model_validator(mode="after")
    def _is_private(self) -> Self:
        """Fail closed: the key of a web page is public, and would open the histories of all people."""
        if self.people_store and self.cors_origins:
            raise ValueError(
                "GEMS_PEOPLE_STORE does not go with GEMS_CORS_ORIGINS: whoever reads a web page could read every "
                "history; let pages ask your own server, or another one of GEMS that has no store"
            )
        return self

    @model_validator(mode="after")
    def _fit(self) -> Self:
        """Check that defaults do not exceed their limits, and that the beam can hold the largest answer."""
        for small, large in (
            ("default_limit", "max_limit"),
            ("default_beam_width", "max_beam_width"),
            ("max_limit", "max_beam_width"),
        ):
            if getattr(self, small) > getattr(self, large):
                raise ValueError(f"{small} must not exceed {large}")
        return self

    def engine_options(self) -> EngineOptions:
        """Return the engine's part of the settings."""
        return EngineOptions(
            engine=self.engine,
            threads=self.threads,
            max_batch_tokens=self.max_batch_tokens,
            join_rows=self.join_rows,
            cache_bytes=self.cache_mib << 20,
            precision=self.precision,
            device=self.device,
            cuda_graphs=self.cuda_graphs,
        )


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Return the settings of the environment, overridden by those that are given. Raises `SettingsError`."""
    if wrong := misspelt(os.environ):
        raise SettingsError(wrong)
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"setting {name or 'combination'}: {said}") from error
