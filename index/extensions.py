"""Extension points: packages in which every module is one choice, found by its file's name.

A file `lora_moe.py` is the choice `lora-moe`. Nothing is listed anywhere else: a new file is a new choice.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def choices(package: str) -> list[str]:
    """Return the names of a package's modules as choices, in alphabetical order; none of them is imported."""
    modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return sorted(module.name.replace("_", "-") for module in modules)


def load_choice(package: str, name: str) -> ModuleType:
    """Import the module of a choice. Raises `ValueError` that lists the choices for a name that is none."""
    one_of(name, choices(package))
    return importlib.import_module(f"{package}.{name.replace('-', '_')}")


def one_of(name: str, known: list[str]) -> str:
    """Return the name if it is known. Raises `ValueError` that lists the known ones."""
    if name not in known:
        raise ValueError(f"{name!r} is none of {', '.join(known)}")
    return name
