"""The `gems` command line."""

from __future__ import annotations

import sys

import typer

from gems.errors import GemsError
from index.catalogue import CatalogueError
from index.embeddings import EmbeddingError
from index.identifiers import IdentifierError
from index.manifest import BundleError
from server.engine.contract import EngineError
from training.cli.assets import assets_app
from training.cli.baseline import baseline_app
from training.cli.bundle import bundle_app
from training.cli.compare import compare_command
from training.cli.data import data_app
from training.cli.demo import demo_command
from training.cli.evaluate import evaluate_command
from training.cli.index import index_app
from training.cli.preservation import preservation_command
from training.cli.report import report_command
from training.cli.serve import serve_command
from training.cli.sweep import sweep_command
from training.cli.train import train_command
from training.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="One language model that both searches and recommends.",
)
app.add_typer(assets_app, name="assets")
app.add_typer(data_app, name="data")
app.add_typer(bundle_app, name="bundle")
app.add_typer(index_app, name="index")
app.add_typer(baseline_app, name="baseline")
app.command("train")(train_command)
app.command("evaluate")(evaluate_command)
app.command("compare")(compare_command)
app.command("preservation")(preservation_command)
app.command("report")(report_command)
app.command("sweep")(sweep_command)
app.command("demo")(demo_command)
app.command("serve", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    serve_command
)

MENDABLE = (UserError, BundleError, CatalogueError, EmbeddingError, IdentifierError, EngineError, GemsError)


def main() -> None:
    """Run the command; an error that a person can mend is one paragraph on stderr and exit code 2."""
    try:
        app()
    except MENDABLE as error:
        print(f"gems: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


if __name__ == "__main__":
    main()
