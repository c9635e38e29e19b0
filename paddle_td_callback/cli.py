"""paddle-td: the command. Exit status 0 = done, 1 = refused with a message, 2 = usage, 130 = Ctrl-C.

Nothing heavy is imported before a command needs it: `paddle-td --help` takes no longer than Python itself, and only
`demo` and `detect --method lstm` import Paddle.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ._version import __version__
from .errors import StoreError, StoreExistsError, TrainingDynamicsError
from .export.commands import add_commands, add_ranking_options, need_paddle, ranked, say, say_json, whole
from .messages import escape, standard_output

if TYPE_CHECKING:
    from .store import TrainingDynamicsStore

HEAD = 10  # samples that `detect` prints

# What library messages call by its Python name, by the option of this command.
OPTIONS = {
    "resume=True continues it, ": "",  # no command does
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
        with _plain_warnings():
            options.run(options)
        with standard_output():
            pass  # what is left of it is written
        return 0
    except BrokenPipeError:  # `paddle-td info run.h5 | head`: no error, but nobody is left to write to
        status = 0
    except KeyboardInterrupt:
        _complain("interrupted")
        status = 130
    except (TrainingDynamicsError, OSError, ValueError, TypeError, ImportError) as error:
        _complain(_with_options(str(error)))
        status = 1
    try:
        with standard_output():
            pass
    except OSError:  # Python itself writes what is left when it ends, and would fail at it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _with_options(message: str) -> str:
    """A message that names the options of this command; what is quoted, such as the name of a file, stays."""
    names = "|".join(map(re.escape, OPTIONS))
    return re.sub(rf"(?<!\w)'[^']*'|{names}", lambda found: OPTIONS.get(found[0], found[0]), message)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(escape(message))


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """A warning takes one line, without the line of code that it came from."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"paddle-td: warning: {escape(message)}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _complain(message: str) -> None:
    print(f"paddle-td: {escape(message)}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="paddle-td", description="Find mislabeled training samples from recorded training dynamics."
    )
    parser.add_argument("--version", action="version", version=f"paddle-td {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser("demo", help="train on bundled digits with wrong labels and find them")
    demo.add_argument(
        "--dir", type=Path, default=Path(), help="where run.h5, issues.csv and report.html go (default: here)"
    )
    demo.add_argument(
        "--overwrite",
        action="store_true",
        help="replace these files instead of keeping them under another name",
    )
    demo.add_argument("--quiet", action="store_true", help="no progress bars")
    demo.add_argument(
        "--json", action="store_true", help="print the figures as JSON, all else to standard error"
    )
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
        type=whole,
        metavar="N",
        help=f"print the N most suspicious samples (default: {HEAD})",
    )
    detect.add_argument(
        "--json", action="store_true", help="print JSON: all samples, or the first --top of them"
    )
    add_ranking_options(detect)
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
    verify.add_argument("--json", action="store_true", help="for machines")
    verify.set_defaults(run=_verify)

    keep = commands.add_parser(
        "keep", help="keep the first epochs of a recording and drop the rest, for an older checkpoint"
    )
    keep.add_argument("recording", metavar="FILE")
    keep.add_argument("n_epochs", type=whole, metavar="N", help="how many epochs to keep")
    keep.set_defaults(run=_keep)
    add_commands(commands)
    return parser


def _demo(options: argparse.Namespace) -> None:
    need_paddle("the demo trains a network")
    from .demo import run

    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        results = run(options.dir, overwrite=options.overwrite, quiet=options.quiet or options.json)
    if options.json:
        say_json(results)


def _detect(options: argparse.Namespace) -> None:
    from .detection.output_files import check_out, is_stdout

    prints_csv = is_stdout(options.csv)
    if options.json and prints_csv:
        raise ValueError("--json and --csv both go to standard output; give --csv a file")
    if options.csv is not None:
        check_out(options.csv)
    issues, _ = ranked(options, options.recordings)
    if options.csv is not None:
        issues.to_csv(options.csv, raw=options.raw_csv)
    if options.json:
        say_json(issues.to_json(options.top))
    elif not options.quiet and not prints_csv:  # what reads the CSV wants nothing else
        say(issues.to_text(options.top or HEAD))
        if options.csv is not None:
            say(f"ranking of all samples: {options.csv}")


def _verify(options: argparse.Namespace) -> None:
    from .store.verify import salvage, verify

    if options.salvage is not None:
        if os.path.lexists(options.salvage):
            raise StoreExistsError(f"'{options.salvage}' exists already; give --salvage another path")
        report = salvage(options.recording, options.salvage)
    else:
        report = verify(options.recording)
    if options.json:
        say_json({**dataclasses.asdict(report), "ok": report.ok})
    else:
        say(report)
    if options.salvage is not None:
        if not options.json:
            say(f"good epochs: {options.salvage}")
    elif not report.ok:
        raise StoreError(f"'{options.recording}' is damaged, see above; --salvage OUT saves its good epochs")


def _keep(options: argparse.Namespace) -> None:
    from .store import StoreWriter, TrainingDynamicsStore

    path, n_kept = options.recording, options.n_epochs
    with TrainingDynamicsStore(path) as store:
        n_epochs = store.n_epochs
    writer = StoreWriter.resume(path, n_epochs=n_kept)
    try:
        writer.drop_others()
    finally:
        writer.close()
    say(
        f"'{path}': {n_kept} epochs kept, {n_epochs - n_kept} dropped; resume=True continues after epoch {n_kept}"
    )


def _info(options: argparse.Namespace) -> None:
    from .store import TrainingDynamicsStore

    all_facts, failures = [], []
    for path in options.recordings:
        try:
            store = TrainingDynamicsStore(path)
        except TrainingDynamicsError as error:  # the others can be read all the same
            failures.append(error)
            continue
        with store:
            all_facts.append(_facts(store))
    if options.json and all_facts:
        say_json(all_facts if len(options.recordings) > 1 else all_facts[0])
    for number, facts in enumerate([] if options.json else all_facts):
        if number:
            say("")
        width = max(map(len, facts))
        for name, value in facts.items():
            say(f"{name.replace('_', ' '):<{width}}  {escape(_shown(value), limit=1000)}")
    for failure in failures[:-1]:
        _complain(str(failure))
    if failures:
        raise failures[-1]


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
