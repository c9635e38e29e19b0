"""paddle-td report, review, export and import. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

from ..messages import escape
from .formats import FORMATS

if TYPE_CHECKING:
    from ..detection.label_issues import LabelIssues
    from .marks import Review


def add_commands(commands: Any) -> None:
    """Add the four commands.

    Args:
        commands: what `ArgumentParser.add_subparsers` gave.
    """
    report = commands.add_parser("report", help="write one page to look at suspects and mark them")
    report.add_argument(
        "recordings", nargs="+", metavar="FILE", help="several runs of the same data are averaged"
    )
    report.add_argument("-o", "--out", metavar="FILE", default="report.html", help="default: report.html")
    report.add_argument(
        "--images",
        metavar="FOLDER",
        help="show the pictures in it: by the sample ids, or in DatasetFolder's order",
    )
    report.add_argument("--title", help="of the page")
    report.add_argument(
        "--top", type=_whole, default=2000, metavar="N", help="how many suspects (default: 2000)"
    )
    _add_ranking_options(report)
    report.set_defaults(run=_report)

    review = commands.add_parser("review", help="use the marks that were set in the page")
    review.add_argument("marks", metavar="MARKS", help="the CSV that the page exported")
    review.add_argument("recording", metavar="FILE", help="the recording that the page was made of")
    review.add_argument(
        "--corrected", metavar="FILE", help="write the labels of all samples, corrected, as CSV"
    )
    review.add_argument("--csv", metavar="FILE", help="write the new ranking as CSV")
    review.add_argument("--save-detector", metavar="FILE", help="save the detector fine-tuned on the marks")
    review.add_argument("--no-fine-tune", action="store_true", help="leave the detector as it is")
    review.add_argument("--json", action="store_true", help="for machines")
    _add_ranking_options(review)
    review.set_defaults(run=_review)

    export = commands.add_parser("export", help="write a recording or its ranking in another tool's format")
    export.add_argument(
        "recordings", nargs="+", metavar="FILE", help="several runs: only for rankings, averaged"
    )
    export.add_argument(
        "-o", "--out", metavar="OUT", required=True, help="file to write; for cartography a folder"
    )
    export.add_argument(
        "--to", choices=list(FORMATS), help="default: by the ending of OUT (.csv, .parquet, .npz, .npy)"
    )
    export.add_argument(
        "--prefix", default="/data/local-files/?d=", help="label-studio: put before the path of each picture"
    )
    _add_ranking_options(export)
    export.set_defaults(run=_export)

    importing = commands.add_parser("import", help="make a recording of what another tool wrote down")
    importing.add_argument(
        "source",
        metavar="SOURCE",
        help="an npz (arrays, or InterpretDL's), or a folder of cartography's JSON lines",
    )
    importing.add_argument("-o", "--out", metavar="FILE", required=True, help="the recording to make")
    importing.add_argument("--logits", action="store_true", help="the array 'probabilities' holds logits")
    importing.add_argument(
        "--keep", type=_keep, default="all", help="all, given, or how many classes (default: all)"
    )
    importing.add_argument("--overwrite", action="store_true", help="replace an existing recording")
    importing.set_defaults(run=_import)


def _add_ranking_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--method", type=_method, default="lstm", help="default: lstm; the others need no Paddle"
    )
    parser.add_argument(
        "--detector", metavar="FILE", help="weights saved by NoiseDetector.save (default: shipped)"
    )
    parser.add_argument("--device", help="Paddle device string, such as cpu or gpu:0 (default: Paddle's own)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, nothing printed")


def _say(text: object) -> None:
    print(escape(text, lines=True))


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {escape(repr(text))}")
    return int(text)


def _keep(text: str) -> Any:
    return text if text in ("all", "given") else _whole(text)


def _method(name: str) -> str:
    from ..detection.find_issues import METHODS

    if name not in METHODS:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(METHODS)}, got {escape(repr(name))}")
    return name


def _report(options: argparse.Namespace) -> None:
    from .files import check_out
    from .report import write_report

    check_out(options.out)
    issues = _ranked(options, options.recordings)
    write_report(
        issues,
        options.recordings,
        options.out,
        images=options.images,
        title=options.title,
        n_suspects=options.top,
    )
    if not options.quiet:
        _say(f"report: {options.out}")


def _review(options: argparse.Namespace) -> None:
    from .files import check_out
    from .marks import read_marks, review_marks, write_labels

    for path in (options.corrected, options.csv, options.save_detector):
        if path is not None:
            check_out(path)
    issues = _ranked(options, [options.recording])
    review = review_marks(
        read_marks(options.marks, issues),
        issues,
        options.recording,
        detector=_detector(options),
        fine_tune=not options.no_fine_tune,
        device=options.device,
        progress=not options.quiet,
    )
    if options.corrected is not None:
        write_labels(options.corrected, review)
    if options.csv is not None:
        review.issues.to_csv(options.csv)
    if options.save_detector is not None:
        if review.detector is None:
            reason = review.why_not or "fine-tuning on the marks did not help"
            raise ValueError(f"no detector was saved: {reason}; leave --save-detector out")
        review.detector.save(options.save_detector)
    if options.json:
        _say(json.dumps(_facts(review), indent=2))
    elif not options.quiet:
        _say(review)
        for name, path in (
            ("corrected labels", options.corrected),
            ("new ranking", options.csv),
            ("detector", options.save_detector),
        ):
            if path is not None:
                _say(f"{name}: {path}")


def _facts(review: Review) -> dict[str, Any]:
    gain = review.gain
    return {
        "wrong": review.n_wrong,
        "right": review.n_right,
        "unsure": review.n_unsure,
        "precision": review.precision,
        "precision_interval": review.precision_interval,
        "deepest_rank": review.deepest_rank,
        "changed_labels": int((review.corrected_labels != review.issues.given_label).sum()),
        "not_fine_tuned_because": review.why_not or None,
        "gain": None if gain is None else vars(gain),
    }


def _export(options: argparse.Namespace) -> None:
    from .files import check_out

    suffix = os.path.splitext(options.out)[1].lower()
    kind = options.to or next((name for name, one in FORMATS.items() if one.suffix == suffix != ""), None)
    if kind is None:
        raise ValueError(f"the ending of '{options.out}' names no format; pass --to {', '.join(FORMATS)}")
    written = FORMATS[kind]
    if not written.is_folder:
        check_out(options.out)
    if written.of_ranking:
        issues = _ranked(options, options.recordings)
        written.write(issues, options.out, prefix=options.prefix, quiet=options.quiet)
    else:
        from ..store import TrainingDynamicsStore

        if len(options.recordings) > 1:
            raise ValueError(f"--to {kind} takes one recording, got {len(options.recordings)}")
        with TrainingDynamicsStore(options.recordings[0]) as store:
            written.write(store, options.out, prefix=options.prefix, quiet=options.quiet)
    if not options.quiet:
        _say(f"{kind}: {options.out}")


def _import(options: argparse.Namespace) -> None:
    from .cartography import import_cartography
    from .import_arrays import import_npz

    if os.path.isdir(options.source):
        import_cartography(options.source, options.out, keep=options.keep, overwrite=options.overwrite)
    else:
        import_npz(
            options.source, options.out, logits=options.logits, keep=options.keep, overwrite=options.overwrite
        )
    _say(f"recording: {options.out}")


def _ranked(options: argparse.Namespace, recordings: list[str]) -> LabelIssues:
    from ..detection.find_issues import find_label_issues
    from ..store import TrainingDynamicsStore

    for recording in recordings:  # before Paddle is imported, which takes seconds
        TrainingDynamicsStore(recording).close()
    return find_label_issues(
        recordings,
        method=options.method,
        detector=_detector(options),
        device=options.device,
        progress=not options.quiet,
    )


def _detector(options: argparse.Namespace) -> Any:
    if options.detector is None:
        return None
    if options.method != "lstm":
        raise ValueError(f"--detector goes with --method lstm, got {options.method}; give one of them")
    from .. import NoiseDetector

    return NoiseDetector.load(options.detector)
