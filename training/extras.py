"""Extras of the package: what a command needs and a smaller installation lacks."""

from __future__ import annotations

from importlib.util import find_spec

from training.errors import UserError

# extra → the modules that it brings; pyproject.toml has the packages
MODULES = {
    "serve": ("fastapi", "fastapi_offline", "prometheus_client", "pydantic_settings", "starlette", "uvicorn"),
    "train": (
        "accelerate",
        "bm25s",
        "gguf",
        "huggingface_hub",
        "pandas",
        "polars",
        "pyarrow",
        "scipy",
        "sentence_transformers",
        "sklearn",
    ),
}


class ExtraError(UserError):
    """An extra is not installed. The message says how to install it."""


def extra_of(module: str) -> str | None:
    """Return the extra that brings a module; None if none of `MODULES` does. module: with or without its package."""
    top = module.partition(".")[0]
    return next((extra for extra, modules in MODULES.items() if top in modules), None)


def check_extra(extra: str) -> None:
    """Raise `ExtraError` if a module of an extra is missing. Call it before work that needs the extra at its end."""
    for module in MODULES[extra]:
        if find_spec(module) is None:
            raise ExtraError(f"{module} is not installed: pip install 'gems-sr[{extra}]'")
