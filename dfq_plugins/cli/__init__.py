"""The `dfq` command. Heavy modules are imported only when a command runs."""

from __future__ import annotations

from typing import NoReturn

import click

from dfq_plugins.cli.group import CommandGroup, Place
from dfq_plugins.cli.versions import print_versions
from dfq_plugins.network.allocation import kept_memory, prefer_huge_pages

EPILOG = """\b
Shell completion, for bash, zsh and fish:
  eval "$(_DFQ_COMPLETE=bash_source dfq)"       in ~/.bashrc
  eval "$(_DFQ_COMPLETE=zsh_source dfq)"        in ~/.zshrc
  _DFQ_COMPLETE=fish_source dfq | source        in ~/.config/fish/config.fish

\b
Exit codes: 0 done, 1 unexpected error (DFQ_DEBUG=1 shows where), 2 bad usage,
3 plugin unknown, broken or not installed, 4 bad model, 5 bad data or folder,
6 diverged, 7 artifact failed its checks, 8 plugin failed its contract,
130 interrupted.
"""


@click.group(
    cls=CommandGroup,
    places={
        "demo": Place("dfq_plugins.cli.demo:demo", "Quantize a small embedded network, from synthesis to report."),
        "plugins": Place("dfq_plugins.cli.plugins:plugins", "List generators, calibrators and listeners."),
        "record": Place("dfq_plugins.cli.record:record", "Record how a model responds to its owner's data."),
        "synthesize": Place("dfq_plugins.cli.synthesize:synthesize", "Synthesize inputs from a model."),
        "quantize": Place("dfq_plugins.cli.quantize:quantize", "Quantize a model on a synthetic set."),
        "finetune": Place("dfq_plugins.cli.finetune:finetune", "Quantize a model and train it on a synthetic set."),
        "distill": Place("dfq_plugins.cli.distill:distill", "Train a smaller network on a trained network's outputs."),
        "prune": Place("dfq_plugins.cli.prune:prune", "Remove filters or weights, then retrain the network."),
        "inspect": Place("dfq_plugins.cli.inspect:inspect", "Rate how good a set is for calibration."),
        "similarity": Place(
            "dfq_plugins.cli.similarity:similarity", "Rank data sets by similarity to the training data."
        ),
    },
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=print_versions,
    help="Print the versions of dfq-plugins and the installed frameworks, and exit.",
)
def cli() -> None:
    """Quantize a trained PyTorch network without its data, inside the framework you already use."""


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    prefer_huge_pages()
    with kept_memory():  # the process belongs to this command
        cli(prog_name="dfq")
    raise SystemExit(0)  # not reached: click exits
