"""`python -m bench.passes --data DIR --json F`: the number of forward passes for the identifiers of a catalogue.

Identifiers are semantic, as in `gems train`. The backbone is one untrained layer, because the look-ahead depends on the
trie and hardly on the model. Prompts are random, and a request wants all items of the beam, so that no hypothesis is
dropped early. Without look-ahead a request takes one pass for each code. The last row has random identifiers, as in
`bench.decode`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from bench.untrained import publish_untrained, random_identifiers
from index.bundle.bundle import Bundle
from index.identifiers.identifiers import Identifiers
from index.identifiers.schemes.semantic import semantic_identifiers
from server.engine.contract import RankRequest
from server.engine.torch_backend.engine import TorchEngine
from server.engine.torch_backend.forward_input import ForwardInput
from training.cli.common.command import run_command
from training.cli.common.numbers import whole_numbers
from training.cli.common.paths import JsonFile
from training.cli.common.quiet import quiet_libraries
from training.config import TrainConfig
from training.data.dataset import DataSet
from training.data.item_vectors import vector_source
from training.outputs import write_json
from training.settings import MOST_BEAMS

REQUESTS = 50
PROMPT = 50


def main(
    data: Annotated[list[Path], typer.Option(help="folder of a data set; may be repeated")],
    codebooks: Annotated[list[str], typer.Option(help="codes per level, comma-separated; may be repeated")],
    widths: Annotated[str, typer.Option(help="beam widths W")] = "10,50",
    json_file: JsonFile = None,
) -> None:
    beam_widths = whole_numbers(widths, most=MOST_BEAMS)
    level_sizes = [whole_numbers(sizes) for sizes in codebooks]
    quiet_libraries()
    torch.set_num_threads(1)
    console = Console()
    figures: list[dict[str, Any]] = []

    def measure(name: str, identifiers: Identifiers) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = publish_untrained(
                Path(folder) / "bundle", items=len(identifiers.codes), layers=1, normalisation="level",
                identifiers=identifiers,
            )  # fmt: skip
            engine = TorchEngine.open(Bundle.open(path))
        for width in beam_widths:
            passes = _passes(engine, width)
            row = {
                "data": name,
                "codebooks": list(identifiers.codebook_sizes),
                "nodes": [len(level) for level in engine.everything.trie.code],
                "W": width,
                "passes": float(np.mean([len(each) for each in passes])),
                "codes_fed": float(np.mean([sum(each) for each in passes])) - PROMPT,
            }
            figures.append(row)
            console.print(row)

    for folder in data:
        dataset = DataSet.load(folder)
        vectors = vector_source(TrainConfig(threads=1), dataset.catalogue).make(console).vectors
        for sizes in level_sizes:
            measure(dataset.info.name, semantic_identifiers(vectors, sizes))
    measure("random", random_identifiers(10_000))
    if json_file is not None:
        write_json(json_file, figures)


def _passes(engine: TorchEngine, width: int) -> list[list[int]]:
    """Return, for each request, the number of rows of each of its passes."""
    forward = engine._backbone.forward
    rows: list[int] = []

    def counted(inputs: Sequence[ForwardInput]) -> torch.Tensor:
        rows.append(sum(each.segment.rows for each in inputs))
        return forward(inputs)

    engine._backbone.forward = counted  # type: ignore[method-assign]
    found = []
    for seed in range(REQUESTS):
        prompt = np.random.default_rng(seed).integers(0, engine.vocabulary.first_added, PROMPT).tolist()
        engine.rank([RankRequest(prompt, width, width)])
        found.append(list(rows))
        rows.clear()
    engine._backbone.forward = forward  # type: ignore[method-assign]
    return found


if __name__ == "__main__":
    run_command(main, "bench.passes")
