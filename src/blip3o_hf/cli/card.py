"""`blip3o-hf card`: what a model card lacks, and the card of a folder with weights."""

import argparse
from pathlib import Path

from ..checks import check_name

EXAMPLES = """examples:
  blip3o-hf card check runs/mine/generation/pipeline
  blip3o-hf card check model_cards/blip3o-8b.md
  blip3o-hf card write runs/mine/generation/pipeline --license apache-2.0 --name me/mine
  blip3o-hf card write runs/mine/lora --base-model BLIP3o/BLIP3o-Model-4B --relation adapter
  blip3o-hf card write runs/mine/generation/pipeline --results results.json

`check` prints one problem a line and exits with 1; a good card gives exit code 0.
`write` makes a card where there is none, and else changes what the options name; other text stays.
"""
FIELDS = {
    "license": "license",
    "license_name": "license_name",
    "license_link": "license_link",
    "base_model": "base_model",
    "relation": "base_model_relation",
    "datasets": "datasets",
    "language": "language",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("check", "write"))
    parser.add_argument("path", metavar="FOLDER|FILE", help="folder with weights, or a card file in another place")
    writing = parser.add_argument_group("write")
    writing.add_argument("--name", help="owner/name of the repository, for the title and the code")
    writing.add_argument("--license", help="id of the Hub, such as apache-2.0; `other` with the next two")
    writing.add_argument("--license-name", help="name of another licence")
    writing.add_argument("--license-link", help="where that licence is")
    writing.add_argument("--base-model", nargs="+", help="Hub ids of what the weights were made from")
    writing.add_argument("--relation", help="to the base model: finetune, adapter, quantized or merge")
    writing.add_argument("--datasets", nargs="+", help="Hub ids of the training data")
    writing.add_argument("--language", nargs="+", help="codes such as en")
    writing.add_argument("--results", nargs="+", default=(), help="files that `evaluate --output` wrote")


def run(arguments: argparse.Namespace) -> int:
    from ..hub import cards
    from ..hub.card_check import RELATIONS
    from ..hub.results import Evaluation

    card_or_folder = Path(arguments.path)
    if not card_or_folder.exists():
        raise FileNotFoundError(
            f"A card is a file, or lies in a folder. There is neither at {card_or_folder}. Check the path."
        )
    if arguments.relation is not None:
        check_name("relation to the base model", arguments.relation, RELATIONS)
    fields = {key: getattr(arguments, name) for name, key in FIELDS.items()}
    if arguments.action == "write":
        evaluations = [Evaluation.read(path) for path in arguments.results]
        path = card_or_folder / cards.CARD if card_or_folder.is_dir() else card_or_folder
        written = [path]
        if not path.exists():
            cards.write_card(card_or_folder)
        written += cards.update_card(path, name=arguments.name, evaluations=evaluations, **fields)
        for path in dict.fromkeys(written):
            print(path)
    elif arguments.name or arguments.results or any(fields.values()):
        raise ValueError("`card check` only reads. Got options of `card write`. Leave them out, or use `card write`.")
    problems_of = cards.card_problems if card_or_folder.is_dir() else cards.card_file_problems
    problems = problems_of(card_or_folder)
    for problem in problems:
        print(problem if arguments.action == "check" else f"still: {problem}")
    return int(bool(problems) and arguments.action == "check")
