"""``python -m train demo-data``: the data set of the demo and of the tests."""

from __future__ import annotations

from pathlib import Path

import click

from runtime.console import print_json, verbosity_option


@click.command("demo-data")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="decides every byte")
@click.option(
    "--tiny", is_flag=True, help="a few pictures in seconds, to try the plumbing; scores mean nothing"
)
@click.option("--overwrite", is_flag=True, help="replace a demo data set made with other settings")
@click.option("--json", "as_json", is_flag=True, help="print JSON on standard output")
@verbosity_option
def demo_data(folder: Path, seed: int, tiny: bool, overwrite: bool, as_json: bool) -> None:
    """Writes real photographs and locally generated fakes to DIR.

    The photographs are those inside the scikit-image and scikit-learn wheels; the fakes come from three
    small generators fitted on the spot (about two minutes on two cores). Nothing is downloaded. A DIR that
    already holds this data set is left as it is.
    """
    from train.demo.build import build_demo_data
    from train.demo.settings import DemoSettings

    settings = DemoSettings.tiny(seed) if tiny else DemoSettings(seed=seed)
    summary = build_demo_data(folder, settings, overwrite=overwrite)
    if as_json:
        print_json(
            {
                "folder": str(summary.folder),
                "already_done": summary.already_done,
                "counts": summary.counts,
                "psnr_db": summary.psnr_db,
                "seconds": round(summary.seconds, 1),
            }
        )
        return
    state = "already done" if summary.already_done else f"made in {summary.seconds:.0f} s"
    click.echo(f"demo data in {summary.folder}: {state}")
    for split, families in summary.counts.items():
        for family, count in families.items():
            click.echo(f"  {split:<5} {family:<12} {count // 2:>4} real + {count // 2} fake")
    quality = ", ".join(f"{family} {value:.1f} dB" for family, value in summary.psnr_db.items())
    click.echo(f"  fakes against their photographs (test, PSNR): {quality}")
