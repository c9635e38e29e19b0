"""paddle-td report, review, export and import. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..messages import escape, standard_output
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
    report.add_argument(
        "-o", "--out", metavar="FILE", default="report.html", help="- prints it (default: report.html)"
    )
    report.add_argument(
        "--picture-size",
        type=whole,
        default=144,
        metavar="N",
        help="pixels of a picture's longer side (default: 144)",
    )
    shown = report.add_mutually_exclusive_group()
    shown.add_argument(
        "--images",
        metavar="FOLDER",
        help="show the pictures in it: by the sample ids, or in DatasetFolder's order (default: this folder, where the "
        "ids are paths of pictures in it)",
    )
    shown.add_argument(
        "--texts", metavar="FILE", help="show these texts, one a line in the order of the samples"
    )
    shown.add_argument(
        "--rows", metavar="CSV", help="show these rows, with a head, in the order of the samples"
    )
    report.add_argument("--title", help="of the page")
    report.add_argument(
        "--top", type=whole, default=2000, metavar="N", help="how many suspects (default: 2000)"
    )
    add_ranking_options(report)
    report.set_defaults(run=_report)

    review = commands.add_parser("review", help="use the marks that were set in the page")
    review.add_argument("marks", metavar="MARKS", help="the CSV that the page exported")
    review.add_argument(
        "recordings",
        nargs="+",
        metavar="FILE",
        help="the recording that the page was made of, or several runs",
    )
    review.add_argument(
        "--corrected", metavar="FILE", help="write the labels of all samples, corrected, as CSV (-: print it)"
    )
    review.add_argument("--csv", metavar="FILE", help="write the new ranking as CSV (-: print it)")
    review.add_argument("--save-detector", metavar="FILE", help="save the detector fine-tuned on the marks")
    review.add_argument("--no-fine-tune", action="store_true", help="leave the detector as it is")
    review.add_argument("--json", action="store_true", help="for machines")
    add_ranking_options(review)
    review.set_defaults(run=_review)

    export = commands.add_parser("export", help="write a recording or its ranking in another tool's format")
    export.add_argument(
        "recordings", nargs="+", metavar="FILE", help="several runs: only for rankings, averaged"
    )
    export.add_argument(
        "-o",
        "--out",
        metavar="OUT",
        required=True,
        help="file to write (-: print it); for cartography a folder",
    )
    export.add_argument(
        "--to", choices=list(FORMATS), help="default: by the ending of OUT (.csv, .parquet, .npz, .npy)"
    )
    export.add_argument(
        "--texts", metavar="FILE", help="label-studio: these texts instead of pictures, one a line"
    )
    export.add_argument(
        "--prefix", default="/data/local-files/?d=", help="label-studio: put before the path of each picture"
    )
    add_ranking_options(export)
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


class _Methods:
    """The names of the methods, which are known only once NumPy is there."""

    def __iter__(self) -> Iterator[str]:
        from ..detection.find_issues import METHODS

        return iter(METHODS)

    def __contains__(self, name: object) -> bool:
        return name in tuple(self)


def add_ranking_options(parser: argparse.ArgumentParser) -> None:
    """Add what every command that ranks samples takes; `ranked` reads it.

    Args:
        parser: of the command.
    """
    parser.add_argument(
        "--method",
        choices=_Methods(),
        metavar="METHOD",
        default="lstm",
        help="%(choices)s (default: lstm)",
    )
    parser.add_argument(
        "--detector", metavar="FILE", help="weights saved by NoiseDetector.save (default: shipped)"
    )
    parser.add_argument("--device", help="Paddle device string, such as cpu or gpu:0 (default: Paddle's own)")
    parser.add_argument("--batch-size", type=whole, metavar="N", help="samples on the device at once")
    parser.add_argument(
        "--class-names", metavar="FILE", help="names of the classes, one a line in their order"
    )
    parser.add_argument(
        "--sample-ids", metavar="FILE", help="names of the samples, one a line in their order"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar, nothing printed")


def ranked(options: argparse.Namespace, recordings: list[str]) -> tuple[LabelIssues, Any]:
    """Find label issues as the options say; what can be refused is refused before Paddle is imported.

    Args:
        options: with those of `add_ranking_options`.
        recordings: paths.

    Returns:
        The issues, and the detector that was asked for (None = the shipped one).
    """
    from ..detection.find_issues import find_label_issues
    from ..store import TrainingDynamicsStore

    if options.detector is not None and options.method != "lstm":
        raise ValueError(f"--detector goes with --method lstm, got {options.method}; give one of them")
    names = {name: lines_of(getattr(options, name)) for name in ("class_names", "sample_ids")}
    for recording in recordings:
        TrainingDynamicsStore(recording).close()
    detector: Any = None
    if options.method == "lstm":
        from ..detection.lstm.detector import NoiseDetector
        from ..detection.lstm.device import check_device, uses_numpy

        if not uses_numpy(options.device):
            need_paddle(f"device {options.device or 'of Paddle'} needs it; --device cpu does not")
            check_device(options.device)
        if options.detector is not None:
            detector = NoiseDetector.load(options.detector)
    issues = find_label_issues(
        recordings,
        method=options.method,
        detector=detector,
        device=options.device,
        batch_size=options.batch_size,
        progress=not options.quiet,
        **names,
    )
    return issues, detector


def lines_of(path: str | None) -> list[str] | None:
    """The lines of a text file, also of one from Windows. Only line feeds end one; the last one starts none.

    Raises:
        StoreError: it cannot be read.
        ValueError: it is no text in UTF-8.
    """
    from ..store.paths import existing_file

    if path is None:
        return None
    with open(existing_file(path, "a text file of a name a line"), encoding="utf-8-sig", newline="") as file:
        try:
            text = file.read()
        except ValueError as error:
            raise ValueError(f"'{path}' is no text in UTF-8: {error}; save it in UTF-8") from error
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def need_paddle(why: str) -> None:
    """Import Paddle.

    Raises:
        ImportError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of compilers that Paddle would use for things not done here
            import paddle  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "paddle":  # Paddle is there and lacks something: its own words say what
            raise
        raise ImportError(
            f"PaddlePaddle is not installed, and {why}: pip install paddlepaddle, or install "
            "Paddle for your device as its install page says"
        ) from error


def say(text: object) -> None:
    """Print lines, escaped."""
    with standard_output() as out:
        print(escape(text, lines=True), file=out)


def say_json(value: Any) -> None:
    """Print JSON, in ASCII, so that it is safe on every terminal."""
    say(json.dumps(value, indent=2))


def whole(text: str) -> int:
    """An argument that is a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {escape(repr(text))}")
    return int(text)


def _keep(text: str) -> Any:
    return text if text in ("all", "given") else whole(text)


_INPUTS = ("recordings", "marks", "class_names", "sample_ids", "texts", "rows", "detector")


def check_outs(options: argparse.Namespace, *names: str) -> bool:
    """Refuse at the start what could not be written at the end, or would replace what the command reads or writes.

    Args:
        options: of the command.
        names: of the options that name its outputs.

    Returns:
        Whether something is printed instead.

    Raises:
        ValueError: two things would be written into one another, or one over an input.
    """
    from ..detection.output_files import check_out, is_stdout, is_stream

    outs = {name: out for name in names if (out := getattr(options, name)) is not None}
    if getattr(options, "json", False):
        outs["json"] = "-"
    n_printed = sum(map(is_stdout, outs.values()))
    if n_printed > 1:
        raise ValueError("only one thing can go to standard output; give the others a file")
    taken: dict[str, str] = {}
    for name in _INPUTS:
        given = getattr(options, name, None) or []
        for path in [given] if isinstance(given, str) else given:
            taken[os.path.realpath(path)] = f"replace what it reads, '{path}'"
    for name, out in outs.items():
        check_out(out)
        real, option = os.path.realpath(out), f"--{name.replace('_', '-')}"
        if not is_stream(out):
            if real in taken:
                raise ValueError(f"{option} '{out}' would {taken[real]}; give it another path")
            taken[real] = f"be written over by {option}"
    return n_printed > 0


def _report(options: argparse.Namespace) -> None:
    from .report import write_report

    is_printed = check_outs(options, "out")
    if options.images is not None and not os.path.isdir(options.images):
        raise ValueError(f"--images '{options.images}' is no folder; give the folder that holds the pictures")
    shown = _lines_or_rows(options)
    _check_contents(options, shown)  # before the ranking, which may take minutes
    issues, _ = ranked(options, options.recordings)
    images, picture_ids = options.images, [] if shown else _picture_ids(issues)
    if images is None and any(map(_is_here, picture_ids)):
        images = "."
    write_report(
        issues,
        options.recordings,
        options.out,
        dataset=shown,
        images=images,
        title=options.title,
        n_suspects=options.top,
        picture_size=options.picture_size,
        progress=not options.quiet,
    )
    if not (options.quiet or is_printed):
        say(f"report: {options.out}")
        if images is None and picture_ids:
            say(
                f"It has no pictures: ids such as '{picture_ids[0]}' are no files below this folder. Pass --images "
                "FOLDER, the one that they begin in."
            )


def _check_contents(options: argparse.Namespace, shown: list[Any] | None) -> None:
    """Refuse what does not fit the recording.

    Raises:
        ValueError: another number of texts, rows or pictures.
    """
    from ..store import TrainingDynamicsStore
    from .thumbnails import Pictures

    with TrainingDynamicsStore(options.recordings[0]) as store:
        n_samples, ids = store.n_samples, lines_of(options.sample_ids) or store.sample_ids
    if shown is not None and len(shown) != n_samples:
        name, file = ("--rows", options.rows) if options.texts is None else ("--texts", options.texts)
        raise ValueError(f"{name} '{file}' holds {len(shown)} for {n_samples} samples; give one for each")
    Pictures(images=options.images, sample_ids=ids, n_samples=n_samples)


def _lines_or_rows(options: argparse.Namespace) -> list[Any] | None:
    """What `--texts` or `--rows` shows of each sample."""
    if options.rows is None:
        return lines_of(options.texts)
    from ..store.paths import existing_file

    with open(existing_file(options.rows, "a table with a head"), newline="", encoding="utf-8-sig") as file:
        try:
            head = file.readline()
            file.seek(0)
            rows = list(csv.reader(file, delimiter=max(",;\t", key=head.count)))
        except (ValueError, csv.Error) as error:
            raise ValueError(
                f"--rows '{options.rows}' is no CSV in UTF-8: {error}; give a table with a head, saved in UTF-8"
            ) from error
    while rows and not rows[-1]:
        del rows[-1]
    if not rows:
        raise ValueError(f"--rows '{options.rows}' is empty; give a table with a head")
    names, *lines = rows
    names = _all_different(names + [""] * (max(map(len, rows)) - len(names)))
    return [dict(itertools.zip_longest(names, line, fillvalue="")) for line in lines]


def _all_different(names: Sequence[str]) -> list[str]:
    """Names of columns: those without one get a number, and so do those that come again."""
    found: dict[str, None] = {}
    for number, name in enumerate(names, 1):
        unique = name or f"column {number}"
        found[unique if unique not in found else f"{unique} ({number})"] = None
    return list(found)


def _picture_ids(issues: LabelIssues) -> list[str]:
    """Ids of the first suspects that are paths of pictures."""
    from .thumbnails import IMAGE_SUFFIXES

    ids = [issues.sample_ids[sample] for sample in issues.ranking[:10]] if issues.sample_ids else []
    return [one for one in ids if one.lower().endswith(IMAGE_SUFFIXES)]


def _is_here(path: str) -> bool:
    """Whether it is a file below this folder."""
    here, file = os.path.join(os.path.abspath("."), ""), os.path.abspath(path)
    return file.startswith(here) and os.path.isfile(file)


def _review(options: argparse.Namespace) -> None:
    from ..store.paths import existing_file
    from .marks import read_marks, review_marks, write_labels

    is_printed = check_outs(options, "corrected", "csv", "save_detector")
    existing_file(options.marks, "the marks that the report exported")
    issues, detector = ranked(options, options.recordings)
    review = review_marks(
        read_marks(options.marks, issues),
        issues,
        options.recordings[0],
        detector=detector,
        fine_tune=not options.no_fine_tune,
        device=options.device,
        progress=not options.quiet,
    )
    if options.corrected is not None:
        write_labels(options.corrected, review)
    if options.csv is not None:
        review.issues.to_csv(options.csv)
    saved = options.save_detector if review.detector is not None else None
    if saved is not None:
        review.detector.save(saved)
    if options.json:
        say_json(_facts(review))
    elif not (options.quiet or is_printed):
        say(review)
        for name, path in (
            ("corrected labels", options.corrected),
            ("new ranking", options.csv),
            ("detector", saved),
        ):
            if path is not None:
                say(f"{name}: {path}")
    if saved != options.save_detector:
        reason = review.why_not or "fine-tuning on the marks did not help"
        raise ValueError(f"no detector was saved: {reason}; leave --save-detector out")


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
    from ..store import TrainingDynamicsStore

    suffix = os.path.splitext(options.out)[1].lower()
    kind = options.to or next((name for name, one in FORMATS.items() if one.suffix == suffix != ""), None)
    if kind is None:
        raise ValueError(f"the ending of '{options.out}' names no format; pass --to {', '.join(FORMATS)}")
    written = FORMATS[kind]
    if written.is_folder and options.out == "-":
        raise ValueError(f"--to {kind} is a folder, which is not printed; give -o one")
    is_printed = not written.is_folder and check_outs(options, "out")
    if is_printed and not written.is_text:
        printed = ", ".join(name for name, one in FORMATS.items() if one.is_text)
        raise ValueError(f"--to {kind} is not printed, give -o a file; printed are {printed}")
    quiet, texts = options.quiet or is_printed, lines_of(options.texts)
    if texts is not None and kind != "label-studio":
        raise ValueError(f"--texts goes with --to label-studio, got {kind}; leave it out")
    if written.of_ranking:
        issues, _ = ranked(options, options.recordings)
        written.write(issues, options.out, prefix=options.prefix, texts=texts, quiet=quiet)
    else:
        if len(options.recordings) > 1:
            raise ValueError(f"--to {kind} takes one recording, got {len(options.recordings)}")
        with TrainingDynamicsStore(options.recordings[0]) as store:
            written.write(store, options.out, prefix=options.prefix, quiet=quiet)
    if not quiet:
        say(f"{kind}: {options.out}")


def _import(options: argparse.Namespace) -> None:
    from .cartography import import_cartography
    from .import_arrays import import_npz

    if os.path.isdir(options.source):
        import_cartography(options.source, options.out, keep=options.keep, overwrite=options.overwrite)
    else:
        import_npz(
            options.source, options.out, logits=options.logits, keep=options.keep, overwrite=options.overwrite
        )
    say(f"recording: {options.out}")
