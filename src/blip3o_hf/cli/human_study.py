"""`blip3o-hf human-study`: people compare pictures of several systems, blind, as in section 5.4 of the paper."""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .files import check_writable

if TYPE_CHECKING:
    from ..evaluation.human_study.analysis import Analysis

EXAMPLES = """examples:
  blip3o-hf human-study make study --system ours=runs/a --system theirs=runs/b --prompts runs/a/prompts.jsonl --seed 7
  blip3o-hf human-study serve study
  blip3o-hf human-study page study study.html
  blip3o-hf human-study analyse study --output report
  blip3o-hf human-study label-studio export study tasks/
  blip3o-hf human-study label-studio import study export.json
"""
PORT = 7870


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_make(actions.add_parser("make", help="make a study of folders of pictures"))
    serve = actions.add_parser("serve", help="ask raters in their browsers, and keep their answers")
    serve.add_argument("study", help="folder of the study")
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets others in (default: %(default)s)"
    )
    serve.add_argument("--port", type=int, default=PORT, help="port to listen on (default: %(default)s)")
    serve.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="a name under which browsers may ask for the page, beside those of this machine; may be repeated",
    )
    page = actions.add_parser("page", help="write one HTML file for raters without a server")
    page.add_argument("study", help="folder of the study")
    page.add_argument("output", help="HTML file")
    analyse = actions.add_parser("analyse", help="shares, intervals, tests, agreement and screens of raters")
    analyse.add_argument("study", help="folder of the study")
    analyse.add_argument("answers", nargs="*", help="files of answers (default: all in STUDY/answers)")
    analyse.add_argument("--output", default="report", help="folder of the report (default: %(default)s)")
    analyse.add_argument(
        "--exclude", action="append", default=[], metavar="RATER", help="leave a rater out; the report says so"
    )
    analyse.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: %(default)s)")
    _add_label_studio(actions.add_parser("label-studio", help="hand the study over to Label Studio"))


def _add_make(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", help="folder of the new study")
    parser.add_argument(
        "--system",
        action="append",
        required=True,
        metavar="NAME=FOLDER",
        help="pictures of one system: FOLDER/<id>.png or FOLDER/<id>/<number>.png; twice or more",
    )
    parser.add_argument(
        "--prompts",
        required=True,
        help=".jsonl with `id` and `prompt`, .txt with one prompt a line, or a folder of <id>.txt",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of orders and control pairs (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=2, help="times that a rater is asked the same (default: %(default)s)"
    )
    parser.add_argument(
        "--control",
        type=int,
        default=10,
        help="control pairs: half of identical pictures, half repeated (default: %(default)s)",
    )
    parser.add_argument(
        "--criteria", default=None, help="JSON list of id, name, instruction (default: the paper's two)"
    )
    parser.add_argument("--ties", action="store_true", help='also offer "no difference"; the paper did not')
    parser.add_argument("--size", type=int, default=None, help="scale all pictures to this width in pixels")
    parser.add_argument(
        "--skip-missing", action="store_true", help="leave out prompts of which a system has no picture"
    )


def _add_label_studio(parser: argparse.ArgumentParser) -> None:
    ways = parser.add_subparsers(dest="way", required=True, metavar="export|import")
    export = ways.add_parser("export", help="write tasks.json and labeling_config.xml")
    export.add_argument("study", help="folder of the study")
    export.add_argument("output", help="folder for both files")
    export.add_argument(
        "--images-url", default=None, help="what stands before a picture's name (default: Label Studio's local files)"
    )
    back = ways.add_parser("import", help="take over answers that Label Studio exported as JSON")
    back.add_argument("study", help="folder of the study")
    back.add_argument("source", help="the exported JSON file")


def run(arguments: argparse.Namespace) -> int:
    actions = {"make": _make, "serve": _serve, "page": _page, "analyse": _analyse, "label-studio": _label_studio}
    actions[arguments.action](arguments)
    return 0


def _systems(given: list[str]) -> dict[str, str]:
    systems = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not (name.strip() and equals and folder):
            raise ValueError(f"A system is written NAME=FOLDER. Got {text!r:.80}. Example: --system ours=runs/a.")
        if name.strip() in systems:
            raise ValueError(f"Each system must have a name of its own. {name!r:.60} is there twice. Rename one.")
        systems[name.strip()] = folder
    return systems


def _make(arguments: argparse.Namespace) -> None:
    from ..evaluation.human_study.criteria import PAPER_CRITERIA, read_criteria
    from ..evaluation.human_study.making import make_study

    study, key, notes = make_study(
        arguments.output,
        _systems(arguments.system),
        arguments.prompts,
        seed=arguments.seed,
        rounds=arguments.rounds,
        control=arguments.control,
        criteria=read_criteria(arguments.criteria) if arguments.criteria else PAPER_CRITERIA,
        ties=arguments.ties,
        size=arguments.size,
        skip_missing=arguments.skip_missing,
    )
    for note in notes:
        print(f"note: {note}")
    print(
        f"{len(study.pairs) - len(key.controls)} pairs and {len(key.controls)} control pairs, "
        f"{study.questions_per_rater} questions for each rater"
    )
    print(
        f"key.json says which picture is whose: keep it from raters\nnext: blip3o-hf human-study serve {study.folder}"
    )


def _serve(arguments: argparse.Namespace) -> None:
    from ..evaluation.human_study.serving import StudyServer
    from ..evaluation.human_study.study import Study
    from ..serving.guard import hosts_of_machine, refusal

    study = Study.read(arguments.study)
    hosts = hosts_of_machine(arguments.host, *arguments.allow_host)
    server = StudyServer(study, arguments.host, arguments.port, partial(refusal, hosts=hosts))
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    print(f"http://{host}:{server.server_port}  answers: {study.folder / 'answers'}  stop: Ctrl-C", flush=True)
    try:
        server.serve_forever()
    finally:
        server.server_close()


def _page(arguments: argparse.Namespace) -> None:
    from ..evaluation.human_study.page import write_page
    from ..evaluation.human_study.study import Study

    target = check_writable(arguments.output)
    print(write_page(Study.read(arguments.study), target))


def _analyse(arguments: argparse.Namespace) -> None:
    from ..evaluation.human_study.analysis import analyse
    from ..evaluation.human_study.answers import answers_of
    from ..evaluation.human_study.report import write_report
    from ..evaluation.human_study.study import Key, Study

    study = Study.read(arguments.study)
    key = Key.read(study)
    answers, notes = answers_of(study, arguments.answers)
    analysis = analyse(study, key, answers, arguments.exclude, arguments.seed, notes)
    paths = write_report(analysis, arguments.output)
    _print(analysis)
    for path in paths:
        print(path)


def _print(analysis: "Analysis") -> None:
    from ..evaluation.human_study.report_text import p_text, share_text

    for row in analysis.comparisons:
        first, second = row.systems
        print(
            f"{row.criterion}: {first} against {second} {share_text(row.share, row.interval)}, p {p_text(row.p)} "
            f"(Holm {p_text(row.p_holm)}), {row.judgments} judgments of {row.prompts} prompts"
        )
    for screen in analysis.raters:
        for note in screen.notes:
            print(f"look at {screen.rater}: {note}")
    for note in analysis.notes:
        print(f"note: {note}")


def _label_studio(arguments: argparse.Namespace) -> None:
    from ..evaluation.human_study import label_studio
    from ..evaluation.human_study.study import Study

    study = Study.read(arguments.study)
    if arguments.way == "export":
        url = label_studio.LOCAL_FILES if arguments.images_url is None else arguments.images_url
        paths: list[Path] = label_studio.export(study, arguments.output, url)
    else:
        paths, notes = label_studio.import_answers(study, arguments.source)
        for note in notes:
            print(f"note: {note}")
    for path in paths:
        print(path)
