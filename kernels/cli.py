"""The command line of the kernels: ``python -m kernels`` and ``dgsnet-kernels``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import click

from kernels import __version__

# Named here as well as in kernels.report so that --help loads no torch; a test compares the two.
FORMS = ("affine", "general")
DTYPES = ("fp32", "fp16", "bf16")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dgsnet-kernels")
def cli() -> None:
    """Look at the gradient surgery kernels: what they take, and how fast they are."""


@cli.command()
@click.option("--form", "forms", multiple=True, type=click.Choice(FORMS), help="default: both")
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(DTYPES), help="default: all")
@click.option(
    "--target",
    "targets",
    multiple=True,
    type=click.IntRange(75, 999),
    help="compute capability, 87 for 8.7 (default: 87 and 90 with every width, six more with 768)",
)
@click.option("--width", "widths", multiple=True, type=click.IntRange(1, 4096), help="D of grad [B, D]")
@click.option("--order", type=click.Choice(("released", "paper")), default="released", show_default=True)
@click.option("--harm", type=click.Choice(("positive", "full")), default="positive", show_default=True)
@click.option("--stats", is_flag=True, help="the variant that also writes the statistics")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
def report(
    forms: tuple[str, ...],
    dtypes: tuple[str, ...],
    targets: tuple[int, ...],
    widths: tuple[int, ...],
    order: str,
    harm: str,
    stats: bool,
    as_json: bool,
) -> int:
    """Build the kernels for GPUs that need not be here; show registers, spills, memory and instructions.

    Exits with 1 if a build spills, takes over 64 registers, drops NaN, or accesses less than 16 bytes where a
    row allows 16. A target that the installed triton lacks is shown as such.
    """
    from dataclasses import replace

    from kernels import report as builds
    from kernels.gradient_surgery.triton_kernel import VERSION

    rows: list[builds.Row] = []
    for variant in builds.list_variants(forms or FORMS, dtypes or DTYPES, targets, widths):
        row = builds.measure(replace(variant, order=order, harm=harm, stats=stats))
        if not as_json:
            if not rows:
                click.echo(
                    f"triton {VERSION}; stack and shared memory in bytes; instructions by kind\n{_HEADER}"
                )
            click.echo(_line(row))
        rows.append(row)
    if as_json:
        click.echo(json.dumps({"schema": 1, "triton": VERSION, "rows": [asdict(row) for row in rows]}))
    return 1 if any(row.problems for row in rows) else 0


_COLUMNS = ("all", "load_128", "load_less", "store_128", "store_less", "float", "shuffle", "barrier")
_HEADER = f"{'kernel':<22}{'sm':>4}{'D':>6}{'regs':>6}{'spills':>8}{'stack':>7}{'shared':>8}" + "".join(
    f"{name:>11}" for name in _COLUMNS
)


def _line(row: Any) -> str:
    variant = row.variant
    start = f"{variant.form + ' ' + variant.dtype:<22}{variant.target:>4}{variant.width:>6}"
    if not row.supported:
        return f"{start}  not known to the installed triton"
    numbers = f"{row.registers:>6}{row.spills:>8}{row.stack:>7}{row.shared:>8}"
    mix = "".join(f"{row.mix[name]:>11}" for name in _COLUMNS)
    return start + numbers + mix + "".join(f"  FAILED: {problem}" for problem in row.problems)


@cli.command()
@click.option("--form", "forms", multiple=True, type=click.Choice(FORMS), help="default: both")
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(DTYPES), help="default: all, fp32 first")
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1), help="B (default: 32 to 131072)")
@click.option("--width", "widths", multiple=True, type=click.IntRange(1, 4096), help="D (default: 512-1280)")
@click.option("--repeats", type=click.IntRange(5, 1000), default=50, show_default=True)
@click.option("--check", is_flag=True, help="exit with 1 if a speed is below its floor")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@click.option("--json-file", type=click.Path(dir_okay=False, path_type=Path), help="JSON into a file")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="an SVG picture into a file")
@click.pass_context
def bench(
    context: click.Context,
    forms: tuple[str, ...],
    dtypes: tuple[str, ...],
    batches: tuple[int, ...],
    widths: tuple[int, ...],
    repeats: int,
    check: bool,
    as_json: bool,
    json_file: Path | None,
    plot: Path | None,
) -> int:
    """Time the kernels on this machine's GPU, after their numbers have passed.

    Device time by CUDA graph replay over buffers that exceed the L2 cache, in turns with eager PyTorch,
    torch.compile and a plain copy; host time per call is its own column. The files are written anew after
    each shape. Exits with 3 without a GPU.
    """
    import torch

    from kernels import bench as timing
    from kernels.plot import draw_svg

    if not torch.cuda.is_available():
        click.echo("error: no CUDA device found, expected one: speed is measured on a GPU only", err=True)
        return 3
    shapes = timing.list_shapes(forms or FORMS, dtypes or DTYPES, batches, widths)
    click.echo(f"numbers first, then the speed of {len(shapes)} shapes", err=True)
    failures = timing.find_wrong_numbers(shapes)
    if failures:
        for failure in failures:
            click.echo(f"FAILED: {failure}", err=True)
        click.echo("error: wrong numbers, so no speed is shown", err=True)
        return 1
    machine = timing.describe_machine()
    rows: list[timing.Speed] = []
    skipped: list[str] = []
    if not as_json:
        click.echo(timing.HEADER)
    document = ""
    for done, shape in enumerate(shapes, start=1):
        try:
            rows.append(timing.measure(*shape, repeats))
        except ValueError as err:  # the next shape may fit the memory
            skipped.append(" ".join(map(str, shape)) + f": {err}")
            click.echo(f"SKIPPED: {skipped[-1]}", err=True)
        else:
            if not as_json:
                click.echo(timing.line(rows[-1]))
        document = json.dumps(
            {
                "schema": 1, **machine, "complete": done == len(shapes),
                "rows": [asdict(row) for row in rows], "skipped": skipped,
            }
        )  # fmt: skip
        # After each shape: a run that is cut off keeps what it measured.
        if json_file is not None:
            _write(json_file, document + "\n")
        if plot is not None and rows:
            _write(plot, draw_svg(timing.curves(rows), title=machine["gpu"]))
    if as_json:
        click.echo(document)
    return 1 if check and (skipped or any(row.missed for row in rows)) else 0


def _write(path: Path, text: str) -> None:
    """Replaces a file as a whole, so that no reader ever finds half of one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def main() -> NoReturn:
    """Runs the command line; exits with 0, 1 (a gate failed), 2 (bad input) or 3 (something is missing)."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    code: object
    try:
        code = cli.main(args=arguments, prog_name="python -m kernels", standalone_mode=False)
    except click.ClickException as err:
        err.show()
        code = err.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        code = 130
    except BrokenPipeError:
        sys.stderr.close()
        code = 0
    except (ValueError, TypeError, ImportError, OSError) as err:
        if debug:
            raise
        click.echo(f"error: {err}", err=True)
        code = 3 if isinstance(err, ImportError) else 2
    sys.exit(code if isinstance(code, int) else 0)
