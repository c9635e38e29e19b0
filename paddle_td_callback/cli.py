"""paddle-td: the command. Exit status 0 = done, 1 = refused with a message, 2 = usage, 130 = Ctrl-C.

Nothing heavy is imported before a command needs it: `paddle-td --help` takes no longer than Python itself, and only
`demo` and `detect --method lstm` import Paddle.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ._version import __version__
from .errors import StoreError, StoreExistsError, TrainingDynamicsError
from .export.commands import add_commands
from .messages import escape

if TYPE_CHECKING:
    from .store import TrainingDynamicsStore

HEAD = 10  # samples that `detect` prints
STDOUT = "-"

# What library messages call by its Python name, by the option of this command.
OPTIONS = {
    "overwrite=True": "--overwrite",
    "class_names": "--class-names",
    "sample_ids": "--sample-ids",
    "batch_size": "--batch-size",
    "detector=": "--detector",
    "method=": "--method ",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: without the program's name; None takes those of the process.

    Returns:
        The exit status; wrong usage leaves by SystemExit(2) as argparse does.
    """
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # a class name must not end the command under LC_ALL=C
    try:
        options.run(options)
        with _stdout() as stream:
            stream.flush()
    except BrokenPipeError:  # `paddle-td info run.h5 | head`: no error, but the reader has gone
        _leave_stdout()
        return 0
    except _StdoutError as error:
        _leave_stdout()
        _complain(f"standard output cannot be written: {error}; give it room, or write into another file")
        return 1
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except (TrainingDynamicsError, OSError, ValueError, TypeError, ImportError) as error:
        message = str(error)
        for name, option in OPTIONS.items():
            message = message.replace(name, option)
        _complain(message)
        return 1
    return 0


class _StdoutError(Exception):
    """Standard output cannot be written: full, or failing."""


@contextlib.contextmanager
def _stdout() -> Iterator[TextIO]:
    try:
        yield sys.stdout or io.StringIO()  # None where the process was started without one
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _StdoutError(error) from error


def _leave_stdout() -> None:
    """Python itself writes what is left when it ends, and would fail at it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: str) -> None:
    print(f"paddle-td: {escape(message)}", file=sys.stderr)


def _say(text: str) -> None:
    with _stdout() as stream:
        print(escape(text, lines=True), file=stream)


def _say_json(value: Any) -> None:
    _say(json.dumps(value, indent=2))  # in ASCII, so that it is safe on every terminal


class _Methods:
    """The names of the methods, which are known only once NumPy is there."""

    def __iter__(self) -> Iterator[str]:
        from .detection.find_issues import METHODS

        return iter(METHODS)

    def __contains__(self, name: object) -> bool:
        return name in tuple(self)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="paddle-td", description="Find mislabeled training samples from recorded training dynamics."
    )
    parser.add_argument("--version", action="version", version=f"paddle-td {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser("demo", help="train on bundled digits with wrong labels and find them")
    demo.add_argument(
        "--dir", type=Path, default=Path(), help="where run.h5 and issues.csv go (default: here)"
    )
    demo.add_argument("--overwrite", action="store_true", help="replace these files if they exist")
    demo.add_argument("--quiet", action="store_true", help="no progress bars")
    demo.set_defaults(run=_demo)

    detect = commands.add_parser(
        "detect", help="rank the samples of a recording by how wrong their labels look"
    )
    detect.add_argument(
        "recordings", nargs="+", metavar="FILE", help="several runs of the same data are averaged"
    )
    detect.add_argument("--csv", metavar="FILE", help="write the ranking of all samples here (-: print it)")
    detect.add_argument(
        "--raw-csv",
        action="store_true",
        help="leave ids and names in the CSV as they are; without it, formulas and control characters are defused",
    )
    detect.add_argument(
        "--top",
        type=_whole_number,
        metavar="N",
        help=f"print the N most suspicious samples (default: {HEAD})",
    )
    detect.add_argument(
        "--json", action="store_true", help="print JSON: all samples, or the first --top of them"
    )
    detect.add_argument(
        "--method", choices=_Methods(), metavar="METHOD", default="lstm", help="%(choices)s (default: lstm)"
    )
    detect.add_argument(
        "--detector", metavar="FILE", help="weights saved by NoiseDetector.save (default: shipped)"
    )
    detect.add_argument("--device", help="Paddle device string, such as cpu or gpu:0 (default: Paddle's own)")
    detect.add_argument("--batch-size", type=_whole_number, metavar="N", help="samples on the device at once")
    detect.add_argument(
        "--class-names", metavar="FILE", help="names of the classes, one a line in their order"
    )
    detect.add_argument(
        "--sample-ids", metavar="FILE", help="names of the samples, one a line in their order"
    )
    detect.add_argument("--quiet", action="store_true", help="no progress bar, no printed ranking")
    detect.set_defaults(run=_detect)

    info = commands.add_parser("info", help="say what recordings hold")
    info.add_argument("recordings", nargs="+", metavar="FILE")
    info.add_argument(
        "--json", action="store_true", help="for machines: an object, or a list for several files"
    )
    info.set_defaults(run=_info)

    verify = commands.add_parser(
        "verify", help="check every byte of a recording, or save what is good of one"
    )
    verify.add_argument("recording", metavar="FILE")
    verify.add_argument("--salvage", metavar="OUT", help="write the good epochs to this new file")
    verify.set_defaults(run=_verify)

    keep = commands.add_parser(
        "keep", help="keep the first epochs of a recording and drop the rest, for an older checkpoint"
    )
    keep.add_argument("recording", metavar="FILE")
    keep.add_argument("n_epochs", type=_whole_number, metavar="N", help="how many epochs to keep")
    keep.set_defaults(run=_keep)
    add_commands(commands)
    return parser


def _whole_number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {escape(repr(text))}")
    return int(text)


def _demo(options: argparse.Namespace) -> None:
    _need_paddle("the demo trains a network")
    from .demo import run

    run(options.dir, overwrite=options.overwrite, quiet=options.quiet)


def _detect(options: argparse.Namespace) -> None:
    from .detection.find_issues import find_label_issues
    from .detection.label_issues import STANDARD_STREAMS, check_csv_path
    from .store import TrainingDynamicsStore

    # Everything that can be refused is refused before Paddle is imported, which takes seconds.
    prints_csv = options.csv in (STDOUT, *STANDARD_STREAMS)
    if options.json and prints_csv:
        raise ValueError("--json and --csv both go to standard output; give --csv a file")
    if options.detector is not None and options.method != "lstm":
        raise ValueError(f"--detector goes with --method lstm, got {options.method}; give one of them")
    if options.csv is not None and options.csv != STDOUT:
        check_csv_path(options.csv)
    names = {name: _lines_of(getattr(options, name)) for name in ("class_names", "sample_ids")}
    for recording in options.recordings:
        TrainingDynamicsStore(recording).close()
    detector: Any = None
    if options.method == "lstm":
        _need_paddle("method lstm needs it, the other methods do not")
        from .detection.lstm.detector import NoiseDetector
        from .detection.lstm.device import check_device

        check_device(options.device)
        if options.detector is not None:
            detector = NoiseDetector.load(options.detector)
    issues = find_label_issues(
        options.recordings,
        method=options.method,
        detector=detector,
        device=options.device,
        batch_size=options.batch_size,
        progress=not options.quiet,
        **names,
    )
    if options.csv == STDOUT:
        with _stdout() as stream:
            issues.write_csv(stream, raw=options.raw_csv)
    elif options.csv is not None:
        issues.to_csv(options.csv, raw=options.raw_csv)
    if options.json:
        _say_json(issues.to_json(options.top))
    elif not options.quiet and not prints_csv:  # what reads the CSV wants nothing else
        _say(issues.to_text(options.top or HEAD))
        if options.csv is not None:
            _say(f"ranking of all samples: {options.csv}")


def _lines_of(path: str | None) -> list[str] | None:
    # Only line feeds end a name, and the one at the end of the file starts none.
    return None if path is None else Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")


def _need_paddle(why: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of compilers that Paddle would use for things not done here
            import paddle  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "paddle":  # Paddle is there and lacks something: its own words say what
            raise
        raise ImportError(
            f"PaddlePaddle is not installed, and {why}: pip install 'paddle_td_callback[cpu]', or install "
            "Paddle for your device as its install page says"
        ) from error


def _verify(options: argparse.Namespace) -> None:
    from .store.verify import salvage, verify

    if options.salvage is not None:
        if os.path.lexists(options.salvage):
            raise StoreExistsError(f"'{options.salvage}' exists already; give --salvage another path")
        _say(str(salvage(options.recording, options.salvage)))
        _say(f"good epochs: {options.salvage}")
        return
    report = verify(options.recording)
    _say(str(report))
    if not report.ok:
        raise StoreError(f"'{options.recording}' is damaged, see above; --salvage OUT saves its good epochs")


def _keep(options: argparse.Namespace) -> None:
    from .store import StoreWriter, TrainingDynamicsStore

    path, n_kept = options.recording, options.n_epochs
    with TrainingDynamicsStore(path) as store:
        n_epochs = store.n_epochs
    StoreWriter.resume(path, n_epochs=n_kept).close()
    _say(
        f"'{path}': {n_kept} epochs kept, {n_epochs - n_kept} dropped; resume=True continues after epoch {n_kept}"
    )


def _info(options: argparse.Namespace) -> None:
    from .store import TrainingDynamicsStore

    all_facts = []
    for path in options.recordings:
        with TrainingDynamicsStore(path) as store:
            all_facts.append(_facts(store))
    if options.json:
        _say_json(all_facts if len(all_facts) > 1 else all_facts[0])
        return
    for number, facts in enumerate(all_facts):
        if number:
            _say("")
        width = max(map(len, facts))
        for name, value in facts.items():
            _say(f"{name.replace('_', ' '):<{width}}  {escape(_shown(value), limit=1000)}")


def _facts(store: TrainingDynamicsStore) -> dict[str, Any]:
    import numpy as np

    labels = store.labels
    present, counts = np.unique(labels[labels >= 0], return_counts=True)
    # The first class without a sample, if there is one; not an array of all classes, of which a file may claim many.
    absent = np.flatnonzero(np.append(present, -1) != np.arange(len(present) + 1))[0]
    if absent < store.n_classes:
        rare, n_rare = int(absent), 0
    else:
        rare, n_rare = int(present[counts.argmin()]), int(counts.min())
    common, n_common = (int(present[counts.argmax()]), int(counts.max())) if len(present) else (0, 0)
    return {
        "file": store.path,
        "bytes": os.path.getsize(store.path),
        "created": store.created,
        "made_with": store.versions,
        "samples": store.n_samples,
        "never_seen": int((labels < 0).sum()),
        "classes": store.n_classes,
        "class_names": store.class_names,
        "smallest_class": {"label": rare, "samples": n_rare},
        "largest_class": {"label": common, "samples": n_common},
        "committed_epochs": store.n_epochs,
        "dropped_epochs": store.dropped_epochs,
        "outputs_of": f"{store.mode} mode",
        "keep": str(store.keep),
        "dtype": store.layout.dtype,
        "compression": "gzip" if store.layout.gzip_level else "none",
        "label_checksum": store.label_checksum,
    }


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['label']} ({value['samples']:,} samples)"
    if isinstance(value, list):
        head = ", ".join(escape(one, limit=40) for one in value[:10]) + (", ..." if len(value) > 10 else "")
        return head or "none"
    if isinstance(value, int):
        return f"{value:,}"
    return "not recorded" if value is None else str(value)
