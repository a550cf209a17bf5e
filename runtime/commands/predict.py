"""``predict``: verdicts on files, folders and names from standard input."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.commands.options import BUNDLE, engine_options, opening_arguments, picture_options
from runtime.commands.sources import Sources
from runtime.commands.tally import Tally
from runtime.commands.writers import csv_writer, show_json, show_nothing, table_writer
from runtime.console import logger, verbosity_option
from runtime.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.detection import Detection
    from runtime.detector import Detector
    from runtime.results import FileState, ResultsFile

# Prepacking the weights takes longer than it saves in so few mosaics, even if each were a batch of its own.
# ViT-B/32 on one core of a Xeon, CPU time: at open 363 ms with and 50 ms without, each run 35 to 45 ms longer
# without. The self-test has two runs, so six more break even; batches of 8 move that to 40 pictures or more.
_FEW_MOSAICS = 4


@click.command()
@BUNDLE
@click.argument("paths", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
@click.option("--csv", "as_csv", is_flag=True, help="comma-separated values with a header")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="write the verdicts to a file, as JSON lines with size, mtime_ns and bundle added",
)
@click.option(
    "--resume",
    is_flag=True,
    help="continue --output: skip the files that it holds unchanged; unreadable ones are tried again "
    "only with --max-pixels, --max-side or --allow-truncated",
)
@click.option("--overwrite", is_flag=True, help="replace --output when it exists")
@engine_options
@picture_options
@click.option("--no-recursive", is_flag=True, help="do not enter folders inside folders")
@click.option("--all-files", is_flag=True, help="judge every file of a folder, whatever its suffix")
@click.option("-0", "--null", "nul", is_flag=True, help="names on standard input end with NUL")
@click.option(
    "--watch",
    "watched",
    type=click.Path(exists=True, file_okay=False),
    help="then judge every picture that arrives in this folder, until Ctrl-C",
)
@click.option("--camera", metavar="SOURCE", help="judge a camera (its number) or a video file, with OpenCV")
@click.option("--every", type=click.IntRange(min=1), default=1, show_default=True, help="every Nth frame")
@verbosity_option
def predict(
    bundle: str,
    paths: tuple[str, ...],
    as_json: bool,
    as_csv: bool,
    output: Path | None,
    resume: bool,
    overwrite: bool,
    no_recursive: bool,
    all_files: bool,
    nul: bool,
    watched: str | None,
    camera: str | None,
    every: int,
    **options: Any,
) -> int:
    """Judge pictures: PATHS are files, folders, or - for names on standard input.

    Exits with 2 when any picture could not be judged; the others still get their verdicts.
    """
    if as_json and as_csv:
        raise UsageError("--json and --csv exclude each other; give one of them")
    if output is None and (resume or overwrite):
        raise UsageError("--resume and --overwrite say what to do with --output; name the file with --output")
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other; give one of them")
    if output is not None and as_csv:
        raise UsageError("--output writes JSON lines; for CSV leave it out and redirect standard output")
    if camera is not None and (paths or watched or output):
        raise UsageError("--camera takes no PATHS, --watch or --output; run a second command for those")
    if nul and "-" not in paths:
        raise UsageError("-0 says how names on standard input end; add - to the PATHS, or leave it out")
    if every != 1 and camera is None:
        raise UsageError("--every counts the frames of --camera; name the camera, or leave it out")
    if not paths and watched is None and camera is None:
        raise UsageError("no PATHS: name files or folders, - for standard input, --watch or --camera")
    from runtime.detector import Detector

    sources = Sources(paths, watched, recursive=not no_recursive, all_files=all_files, nul=nul)
    tally = Tally(output, shows_progress=output is not None and not as_json)
    if options["prepack"] is None:
        is_endless = camera is not None or watched is not None
        options["prepack"] = is_endless or not _are_few(paths, options["views"])
    with ExitStack() as stack:
        detector = stack.enter_context(Detector.open(bundle, **opening_arguments(options)))
        show = (
            show_json
            if as_json
            else csv_writer()
            if as_csv
            else show_nothing
            if output is not None
            else table_writer(detector.bundle.manifest.decision.threshold)
        )
        if camera is not None:
            verdicts = _from_camera(detector, camera, every)
        else:
            names = sources.names()
            if output is None:
                verdicts = detector.stream(names)
            else:
                from runtime.results import ResultsFile

                if output.resolve().is_relative_to(detector.bundle.path):
                    raise UsageError("--output lies in the bundle, which then opens no more; move it out")
                digest = detector.bundle.manifest.digest
                results = ResultsFile(
                    output, digest, views=options["views"] or 1, resume=resume, overwrite=overwrite
                )
                # With other limits a picture that was refused may be read now.
                retry = any(options[name] for name in ("max_pixels", "max_side", "allow_truncated"))
                verdicts = _into_file(detector, names, stack.enter_context(results), tally, retry=retry)
        try:
            with tally.progress():
                if sources.is_countable:
                    tally.expect(sources.count)
                for detection in verdicts:
                    tally.add(detection)
                    show(detection)
        except KeyboardInterrupt:
            if watched is None and camera is None:
                raise
            return tally.finish()  # the one way that these two end
    if line := sources.left_out.line():
        logger.warning(line)
    if tally.judged + tally.skipped == 0:
        raise UsageError("no pictures found; check the paths and the suffixes of the files")
    return tally.finish()


def _are_few(paths: Sequence[str], views: int | None) -> bool:
    """Says whether these are plain files, neither folders nor standard input, and few mosaics in all."""
    are_files = not any(path == "-" or os.path.isdir(path) for path in paths)
    return are_files and len(paths) * (views or 1) <= _FEW_MOSAICS


def _into_file(
    detector: Detector, names: Iterator[str], results: ResultsFile, tally: Tally, *, retry: bool
) -> Iterator[Detection]:
    """Judges what the file does not hold, and writes each verdict there before passing it on.

    With ``retry``, a picture that the file says could not be read is tried again.
    """
    from runtime.results import file_state

    states: deque[FileState] = deque()

    def fresh() -> Iterator[str]:
        for name in names:
            # Before it is decoded: a file that changes meanwhile is then judged again by the next run.
            state = file_state(name)
            held_verdict = results.held.holds_verdict(name, state)
            held_error = not held_verdict and not retry and results.held.holds_error(name, state)
            if held_verdict or held_error:
                tally.skip(is_error=held_error)
                continue
            states.append(state)
            yield name

    for detection in detector.stream(fresh()):
        results.append(detection, states.popleft())
        yield detection


def _from_camera(detector: Detector, camera: str, every: int) -> Iterator[Detection]:
    from runtime.pictures.camera import frames

    names: deque[str] = deque()

    def pixels() -> Iterator[NDArray[np.uint8]]:
        for name, frame in frames(camera, every=every):
            names.append(name)
            yield frame

    for detection in detector.stream(pixels()):
        yield replace(detection, path=names.popleft())
