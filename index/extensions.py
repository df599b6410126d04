"""Extension points: packages in which every module is one choice, found by the name of its file.

The file `lora_moe.py` is the choice `lora-moe`. There is no other list: a new file is a new choice.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def choices(package: str) -> list[str]:
    """Return the names of a package's modules as choices, in alphabetical order, without importing them."""
    modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return sorted(module.name.replace("_", "-") for module in modules)


def load_choice(package: str, name: str) -> ModuleType:
    """Import the module of a choice. Raises `ValueError`, with the list of choices, for an unknown name."""
    one_of(name, choices(package))
    return importlib.import_module(f"{package}.{name.replace('-', '_')}")


def one_of(name: str, known: list[str]) -> str:
    """Return the name if it is known. Raises `ValueError`, with the list of known names, if it is not."""
    if name not in known:
        raise ValueError(f"{name!r} is none of {', '.join(known)}")
    return name
