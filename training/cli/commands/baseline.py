"""`gems baseline`: other recommenders and searchers, on the same cases as the generative model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from training.baselines.settings import (
    BaselineSettings,
    DenseSettings,
    DreamRecSettings,
    NCFSettings,
    SASRecSettings,
    UnifiedSSRSettings,
    settings_from,
)
from training.cli.common.flags import add_flags, given
from training.cli.common.paths import output_folder
from training.cli.common.quiet import quiet_libraries

baseline_app = typer.Typer(
    no_args_is_help=True,
    help="Train a baseline and rank the test cases with it; compare with 'gems compare'.",
)

Data = Annotated[Path, typer.Option(help="folder of a data set")]
Out = Annotated[Path, typer.Option(help="run folder to write", callback=output_folder)]
LanguageVectors = Annotated[
    Path | None,
    typer.Option(help="Parquet file of item_id and vector (default: MiniLM vectors of the items' texts)"),
]
System = Annotated[str | None, typer.Option(help="name in comparisons (default: that of the baseline)")]
Resume = Annotated[bool, typer.Option(help="continue the run in OUT after its last whole epoch")]


@baseline_app.command("sasrec")
def sasrec_command(
    data: Data,
    out: Out,
    language_vectors: LanguageVectors = None,
    resume: Resume = False,
    system: System = None,
    **flags: Any,
) -> None:
    """SASRec, for recommendation. OUT/item_vectors.parquet holds the item vectors that it ends with."""
    _run(data, out, settings_from(SASRecSettings, given(flags)), resume, system, language_vectors)


@baseline_app.command("ncf")
def ncf_command(data: Data, out: Out, resume: Resume = False, system: System = None, **flags: Any) -> None:
    """Neural matrix factorisation, for recommendation."""
    _run(data, out, settings_from(NCFSettings, given(flags)), resume, system)


@baseline_app.command("dense")
def dense_command(data: Data, out: Out, resume: Resume = False, system: System = None, **flags: Any) -> None:
    """A dense bi-encoder (MiniLM, tuned on the logged searches), for search."""
    _run(data, out, settings_from(DenseSettings, given(flags)), resume, system)


@baseline_app.command("dreamrec")
def dreamrec_command(
    data: Data,
    out: Out,
    language_vectors: LanguageVectors = None,
    resume: Resume = False,
    system: System = None,
    **flags: Any,
) -> None:
    """DreamRec, for recommendation: a diffusion model makes the vector of the next item."""
    _run(data, out, settings_from(DreamRecSettings, given(flags)), resume, system, language_vectors)


@baseline_app.command("unified-ssr")
def unified_ssr_command(
    data: Data, out: Out, resume: Resume = False, system: System = None, **flags: Any
) -> None:
    """UnifiedSSR, for search and recommendation: two views of a history that share their weights."""
    _run(data, out, settings_from(UnifiedSSRSettings, given(flags)), resume, system)


add_flags(sasrec_command, SASRecSettings)
add_flags(ncf_command, NCFSettings)
add_flags(dense_command, DenseSettings)
add_flags(dreamrec_command, DreamRecSettings)
add_flags(unified_ssr_command, UnifiedSSRSettings)


def _run(
    data: Path,
    out: Path,
    settings: BaselineSettings,
    resume: bool,
    system: str | None,
    language: Path | None = None,
) -> None:
    from training.baselines.run import run_baseline  # slow imports, not for --help
    from training.evaluation.table import print_evaluation

    quiet_libraries()
    console = Console()
    result = run_baseline(
        data, out, settings, language=language, resume=resume, system=system, console=console
    )
    print_evaluation(result, console)
    cost = result["training"]
    console.print(
        f"{cost['parameters']:,} trained weights, best after {cost['epochs']} epochs, {cost['seconds']:.0f} s",
        highlight=False,
    )
