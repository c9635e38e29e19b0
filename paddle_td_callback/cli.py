"""paddle-td: the command. Exit status 0 = done, 1 = refused with a message, 2 = usage, 130 = Ctrl-C."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ._version import __version__
from .detection.find_issues import METHODS, find_label_issues
from .detection.label_issues import check_csv_path
from .errors import StoreError, TrainingDynamicsError
from .store import TrainingDynamicsStore
from .store.verify import salvage, verify


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
        sys.stdout.flush()
    except BrokenPipeError:  # `paddle-td info run.h5 | head`: not an error, but nobody is left to write to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("paddle-td: interrupted", file=sys.stderr)
        return 130
    except (TrainingDynamicsError, OSError, ValueError, ImportError) as error:
        print(f"paddle-td: {error}", file=sys.stderr)
        return 1
    return 0


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
    detect.add_argument(
        "--csv", metavar="FILE", help="write the ranking of all samples here (/dev/stdout: print it)"
    )
    detect.add_argument("--method", choices=METHODS, default="lstm", help="default: lstm")
    detect.add_argument(
        "--detector", metavar="FILE", help="weights saved by NoiseDetector.save (default: shipped)"
    )
    detect.add_argument("--device", help="Paddle device string, such as cpu or gpu:0 (default: Paddle's own)")
    detect.add_argument("--batch-size", type=_whole_number, help="samples on the device at once")
    detect.add_argument("--quiet", action="store_true", help="no progress bar, no printed ranking")
    detect.set_defaults(run=_detect)

    info = commands.add_parser("info", help="say what a recording holds")
    info.add_argument("recording", metavar="FILE")
    info.add_argument("--json", action="store_true", help="for machines")
    info.set_defaults(run=_info)

    verify = commands.add_parser(
        "verify", help="check every byte of a recording, or save what is good of one"
    )
    verify.add_argument("recording", metavar="FILE")
    verify.add_argument("--salvage", metavar="OUT", help="write the good epochs to this new file")
    verify.set_defaults(run=_verify)
    return parser


def _whole_number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _demo(options: argparse.Namespace) -> None:
    _need_paddle("the demo trains a network")
    from .demo import run

    run(options.dir, overwrite=options.overwrite, quiet=options.quiet)


def _detect(options: argparse.Namespace) -> None:
    detector: Any = None
    if options.csv is not None:
        check_csv_path(options.csv)
    for recording in options.recordings:  # before Paddle is imported, which takes seconds
        TrainingDynamicsStore(recording).close()
    if options.method == "lstm":
        _need_paddle("method lstm needs it, the other methods do not")
        from .detection.lstm.detector import NoiseDetector

        if options.detector is not None:
            detector = NoiseDetector.load(options.detector)
    elif options.detector is not None:
        raise ValueError(f"--detector goes with --method lstm, not with {options.method}")
    issues = find_label_issues(
        options.recordings,
        method=options.method,
        detector=detector,
        device=options.device,
        batch_size=options.batch_size,
        progress=not options.quiet,
    )
    if options.csv is not None:
        issues.to_csv(options.csv)
    if not options.quiet and options.csv != "/dev/stdout":  # what reads the CSV wants nothing else
        print(issues)
        if options.csv is not None:
            print(f"ranking of all samples: {options.csv}")


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
    if options.salvage is not None:
        print(salvage(options.recording, options.salvage))
        print(f"good epochs: {options.salvage}")
        return
    report = verify(options.recording)
    print(report)
    if not report.ok:
        raise StoreError(f"'{options.recording}' is damaged, see above")


def _info(options: argparse.Namespace) -> None:
    with TrainingDynamicsStore(options.recording) as store:
        facts = _facts(store)
    if options.json:
        print(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):<{width}}  {_shown(value)}")


def _facts(store: TrainingDynamicsStore) -> dict[str, Any]:
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
        head = ", ".join(map(str, value[:10])) + (", ..." if len(value) > 10 else "")
        return head or "none"
    if isinstance(value, int):
        return f"{value:,}"
    return "not recorded" if value is None else str(value)
