"""`magicfuse evaluate fusion`, `protocol` and `report`: the paper's experiments."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from magicfuse_ros.commands.evaluate_subject import evaluation_of, header, opening, write_json
from magicfuse_ros.whole_files import write_whole

if TYPE_CHECKING:
    from magicfuse_ros.evaluation.protocol import Protocol
    from magicfuse_ros.evaluation.protocol_run import Findings
    from magicfuse_ros.evaluation.subject import Evaluation

SCENES = 8
"""On the report's page."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what only the experiments take."""
    parser.add_argument(
        "--fused",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="of `fusion`: folders of any methods' pictures to score",
    )
    parser.add_argument("--visible", type=Path, metavar="DIR", help="of --fused: what was fused")
    parser.add_argument("--infrared", type=Path, metavar="DIR", help="of --fused: what was fused")
    parser.add_argument(
        "--quoted", metavar="PROTOCOL", help="of --fused: put the paper's rows of table2 ... below"
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="of `protocol`: measure another method's pictures too, named as the dataset's",
    )
    parser.add_argument(
        "--segformer", type=Path, metavar="DIR", help="checkpoint that SegFormer begins with"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="train SegFormer for minutes on a CPU: enough to see a table, not to compare with",
    )


def check(args: argparse.Namespace) -> None:
    """Check the arguments of `fusion`, `protocol` and `report`."""
    fusion, report = args.subject == "fusion", args.subject == "report"
    folders = (args.fused, args.visible, args.infrared)
    missing = [
        package
        for package in ("matplotlib", "transformers")
        if report and importlib.util.find_spec(package) is None
    ]
    odd = [peer for peer in args.peer if not all(peer.partition("="))]
    subject, takes_protocol = args.subject, args.subject in {"protocol", "report"}
    for fault, told in (
        (fusion and not all(folders),
         "`fusion` needs --fused, --visible and --infrared; a model is scored by `protocol`"),
        (not fusion and any((*folders, args.quoted)),
         "--fused, --visible, --infrared and --quoted go with `fusion`"),
        (not fusion and args.data is None, "--data is missing; accepted: a folder of datasets"),
        (subject == "protocol" and args.protocol is None,
         "protocol is missing; accepted: table2, ... or the path of a .yaml file"),
        (args.protocol is not None and not takes_protocol,
         f"{args.protocol} goes with `protocol` or `report`, not `{subject}`"),
        (report and (args.output is None or args.output.suffix != ".md"),
         f"--output is {args.output}; a report needs a .md file"),
        (missing,
         f"a report needs {' and '.join(missing)}: pip install 'magicfuse_ros[benchmark]'"),
        (args.peer and subject != "protocol",
         f"--peer goes with `protocol`, not with `{subject}`"),
        (odd, f"--peer is {', '.join(odd)}; accepted: NAME=DIR"),
    ):  # fmt: skip
        if fault:
            raise ValueError(told)


def score_folders(args: argparse.Namespace) -> None:
    """Print the scores of the folders of `fusion`."""
    from magicfuse_ros.evaluation.fused_folders import fused_folders_table
    from magicfuse_ros.evaluation.protocol import read_protocol

    quoted = read_protocol(args.quoted).fusion_quoted if args.quoted else None
    if args.quoted and quoted is None:
        raise ValueError(f"--quoted is {args.quoted}, which quotes no fusion; accepted: table2 ...")
    table = fused_folders_table(
        args.fused, args.visible, args.infrared, limit=args.limit or 0, quoted=quoted
    )
    print(table.markdown())
    if args.output is not None:
        write_json(args.output, {"tables": {"fusion": [table.as_json()]}})


def run_protocol(args: argparse.Namespace) -> None:
    """Carry out one protocol."""
    from magicfuse_ros.evaluation.protocol import read_protocol

    protocol = read_protocol(args.protocol)
    evaluation = _subject(protocol, args)
    content = header(evaluation, args)
    print(opening(content))
    found = _findings(protocol, evaluation, args)
    for table in found.tables:
        print(table.markdown(), flush=True)
    if args.output is not None:
        tables = {args.protocol: [table.as_json() for table in found.tables]}
        write_json(args.output, {**content, "tables": tables})
    evaluation.engine.close()


def write_report(args: argparse.Namespace) -> None:
    """Carry out every protocol and the calibration, and write the report's two pages."""
    from magicfuse_ros.evaluation.calibration import calibration
    from magicfuse_ros.evaluation.protocol import protocols, read_protocol
    from magicfuse_ros.evaluation.protocol_run import NotThereError
    from magicfuse_ros.evaluation.results_page import Section, markdown, page
    from magicfuse_ros.evaluation.scene_sheet import picture_sheet

    recipes = [read_protocol(str(path)) for path in protocols(args.protocol)]
    evaluation = evaluation_of(args)
    # First what is quick and may fail.
    intro, sheet = opening(header(evaluation, args)), picture_sheet(evaluation, SCENES)
    measures: dict[str, Callable[[], Findings]] = {"Confidence": partial(calibration, evaluation)}
    # Protocols that are measured with the same engine share it.
    opened: dict[tuple[bool, str], Evaluation] = {}

    def measured(protocol: Protocol) -> Findings:
        key = protocol.paper_fusion, protocol.labels
        if key not in opened:
            opened[key] = _subject(protocol, args)
        return _findings(protocol, opened[key], args)

    for each in recipes:
        measures[each.title] = partial(measured, each)
    sections = []
    for title, measure in measures.items():
        try:
            found = measure()
        except NotThereError as error:
            sections.append(Section(title, note=f"Not measured: {error}."))
        else:
            sections.append(Section(title, found.tables, found.curves))
    html = args.output.with_suffix(".html")
    write_whole(html, page(intro, sections, sheet))
    write_whole(args.output, markdown(intro, sections, html.name))
    print(f"wrote {args.output} and {html}")
    for subject in (evaluation, *opened.values()):
        subject.engine.close()


def _subject(protocol: Protocol, args: argparse.Namespace) -> Evaluation:
    return evaluation_of(args, paper_fusion=protocol.paper_fusion, labels=protocol.labels)


def _findings(protocol: Protocol, evaluation: Evaluation, args: argparse.Namespace) -> Findings:
    from dataclasses import replace

    from magicfuse_ros.evaluation.protocol_run import ProtocolRun
    from magicfuse_ros.resources import user_cache

    if args.quick and protocol.segformer is not None:
        recipe = replace(protocol.segformer, steps=400, batch=4, size=(160, 120))
        protocol = replace(protocol, segformer=recipe)
    peers = {name: Path(folder) for name, _, folder in (p.partition("=") for p in args.peer)}
    run = ProtocolRun(
        protocol,
        evaluation,
        args.data,
        args.cache or user_cache(),
        peers=peers,
        checkpoint=args.segformer,
    )
    return run.findings()
