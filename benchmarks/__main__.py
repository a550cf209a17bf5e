"""python -m benchmarks [NAME]: what needs no GPU, as tables; --json for machines."""

from __future__ import annotations

import click

from benchmarks.decode import decode
from benchmarks.decode_together import decode_together
from benchmarks.export.command import export
from benchmarks.onnxruntime_cpu.command import onnxruntime_cpu
from benchmarks.parity.command import parity
from benchmarks.patch_selection.command import patches
from benchmarks.startup.command import startup
from benchmarks.training.command import training
from runtime.console import run_cli

_ALL = (patches, decode, decode_together, startup, training, onnxruntime_cpu, export, parity)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def main(context: click.Context) -> None:
    """Times this project's code against straightforward code, side by side; without a name, all of it."""
    if context.invoked_subcommand is None:
        for command in _ALL:
            context.invoke(command)


for _command in _ALL:
    main.add_command(_command)

if __name__ == "__main__":
    run_cli(main, "python -m benchmarks")
