"""The device of a command that ranks with a model."""

from __future__ import annotations

from typing import Annotated

import typer

from training.settings import DeviceName

DeviceOption = Annotated[
    DeviceName, typer.Option(help="where the model is computed ('auto': on a GPU if there is one)")
]
