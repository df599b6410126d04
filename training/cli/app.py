"""The commands of `gems`, put together."""

from __future__ import annotations

import typer

from training.cli.commands.assets import assets_app
from training.cli.commands.baseline import baseline_app
from training.cli.commands.bundle import bundle_app
from training.cli.commands.compare import compare_command
from training.cli.commands.data import data_app
from training.cli.commands.demo import demo_command
from training.cli.commands.evaluate import evaluate_command
from training.cli.commands.experiments import reproduce_command, sweep_command
from training.cli.commands.index import fuse_command, index_app
from training.cli.commands.preservation import preservation_command
from training.cli.commands.rank import rank_command
from training.cli.commands.report import report_command
from training.cli.commands.serve import serve_command
from training.cli.commands.train import TrainCommand, plan_command, train_command
from training.cli.common.command import one_line_errors
from training.doctor.command import doctor_command

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
app.command("train", cls=TrainCommand)(train_command)
app.command("plan", cls=TrainCommand)(plan_command)
app.command("doctor")(doctor_command)
app.command("evaluate")(evaluate_command)
app.command("fuse")(fuse_command)
app.command("rank")(rank_command)
app.command("compare")(compare_command)
app.command("preservation")(preservation_command)
app.command("report")(report_command)
app.command("sweep")(sweep_command)
app.command("reproduce")(reproduce_command)
app.command("demo")(demo_command)
app.command(
    "serve",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)(serve_command)


def run() -> None:
    """Run the command of `sys.argv`. An error that the user can correct is one line on stderr and exit code 2."""
    with one_line_errors("gems"):
        app()
