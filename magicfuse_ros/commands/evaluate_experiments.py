"""`magicfuse evaluate fusion`, `protocol` and `report`: the paper's experiments."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from magicfuse_ros.commands.evaluate_subject import evaluation_of, header, opening, write_json
from magicfuse_ros.whole_files import write_whole

if TYPE_CHECKING:
    from magicfuse_ros.evaluation.protocol import Protocol
    from magicfuse_ros.evaluation.protocol_run import Findings
    from magicfuse_ros.evaluation.results_page import Section
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
    folders = (args.fused, args.visible, args.infrared)
    if args.subject == "fusion" and not all(folders):
        raise ValueError(
            "`fusion` scores folders: give --fused, --visible and --infrared; `protocol table2` "
            "scores a model"
        )
    if args.subject != "fusion" and (any(folders) or args.quoted):
        raise ValueError("--fused, --visible, --infrared and --quoted go with `fusion`")
    if args.subject != "fusion" and args.data is None:
        raise ValueError("--data is missing; accepted: a folder of datasets")
    if args.subject == "protocol" and args.protocol is None:
        raise ValueError("protocol is missing; accepted: table2, ... or the path of a .yaml file")
    if args.protocol is not None and args.subject not in {"protocol", "report"}:
        raise ValueError(f"{args.protocol} goes with `protocol` or `report`, not `{args.subject}`")
    if args.subject == "report" and (args.output is None or args.output.suffix != ".md"):
        raise ValueError(f"--output is {args.output}; a report needs a .md file")
    if args.subject == "report" and importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            "the report's curves need matplotlib: pip install 'magicfuse_ros[benchmark]'"
        )
    if args.peer and args.subject != "protocol":
        raise ValueError(f"--peer goes with `protocol`, not with `{args.subject}`")
    wrong = [peer for peer in args.peer if not all(peer.partition("="))]
    if wrong:
        raise ValueError(f"--peer is {wrong[0]}; accepted: NAME=DIR")


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


def run_protocols(args: argparse.Namespace) -> None:
    """Carry out one protocol, or all that ship for the report's page."""
    from magicfuse_ros.evaluation.protocol import protocols, read_protocol
    from magicfuse_ros.evaluation.protocol_run import NotThereError
    from magicfuse_ros.evaluation.results_page import Section

    engines: dict[bool, Evaluation] = {}

    def subject(*, paper_fusion: bool) -> Evaluation:
        if paper_fusion not in engines:
            engines[paper_fusion] = evaluation_of(args, paper_fusion=paper_fusion)
        return engines[paper_fusion]

    if args.subject == "protocol":
        protocol = read_protocol(args.protocol)
        evaluation = subject(paper_fusion=protocol.paper_fusion)
        content = header(evaluation, args)
        print(opening(content))
        found = _findings(protocol, evaluation, args)
        for table in found.tables:
            print(table.markdown(), flush=True)
        if args.output is not None:
            tables = {args.protocol: [table.as_json() for table in found.tables]}
            write_json(args.output, {**content, "tables": tables})
    else:
        sections = []
        for path in protocols(args.protocol):
            protocol = read_protocol(str(path))
            evaluation = subject(paper_fusion=protocol.paper_fusion)
            try:
                found = _findings(protocol, evaluation, args)
            except NotThereError:
                note = f"Not measured: the data folder has none of {', '.join(protocol.data)}."
                sections.append(Section(protocol.title, note=note))
            else:
                sections.append(Section(protocol.title, found.tables, found.curves))
        _write_report(subject(paper_fusion=False), sections, args)
    for evaluation in engines.values():
        evaluation.engine.close()


def _findings(protocol: Protocol, evaluation: Evaluation, args: argparse.Namespace) -> Findings:
    from dataclasses import replace

    from magicfuse_ros.evaluation.protocol_run import ProtocolRun
    from magicfuse_ros.resources import user_cache

    if args.quick and protocol.segformer is not None:
        recipe = replace(protocol.segformer, steps=100, batch=4, size=(320, 240))
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


def _write_report(
    evaluation: Evaluation, sections: list[Section], args: argparse.Namespace
) -> None:
    from magicfuse_ros.evaluation.calibration import calibration
    from magicfuse_ros.evaluation.results_page import Section, markdown, page
    from magicfuse_ros.evaluation.scene_sheet import picture_sheet

    found = calibration(evaluation)
    sections.append(Section("Confidence", found.tables, found.curves))
    intro, html = opening(header(evaluation, args)), args.output.with_suffix(".html")
    write_whole(html, page(intro, sections, picture_sheet(evaluation, SCENES)))
    write_whole(args.output, markdown(intro, sections, html.name))
    print(f"wrote {args.output} and {html}")
