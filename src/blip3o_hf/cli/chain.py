"""`blip3o-hf chain`: every stage of a model, from nothing to the pipeline."""

import argparse
from pathlib import Path

EXAMPLES = """examples:
  blip3o-hf chain recipes/tiny/chain.yaml
  blip3o-hf chain recipes/tiny/chain.yaml --short
  blip3o-hf chain recipes/tiny/chain.yaml --output runs/again training.use_cpu=false

A finished stage is not run again, and an interrupted one goes on from its last checkpoint: after any interruption,
give the same command again. The table at the end tells what each stage took and reached.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("chain", help="YAML file that lists recipes, see recipes/tiny/chain.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace values of every recipe")
    parser.add_argument("--output", default=None, metavar="FOLDER", help="where to (default: the chain's own folder)")
    parser.add_argument("--short", action="store_true", help="a run of minutes, in which every curve should rise")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: all)")


def run(arguments: argparse.Namespace) -> int:
    from ..training.chain import Summary, load_chain, table, train_alone

    chain = load_chain(arguments.chain)
    output = arguments.output or (f"{chain.folder}-short" if arguments.short else None)
    summaries = []
    for number, link in enumerate(chain.links, 1):
        path, overrides = chain.recipe(link, output, arguments.short)
        folder = Path(chain.load(link, output, arguments.short).output_dir)
        if Summary.read(folder) is None:
            print(f"stage {number} of {len(chain.links)}: {path}", flush=True)
            code = train_alone(path, [*overrides, *arguments.overrides], folder, arguments.threads)
            if code:
                print(f"The stage of {path} ended with exit code {code}. Give the same command again to go on.")
                return code
        summary = Summary.read(folder)
        assert summary is not None  # a stage that ends with 0 has written it
        summaries.append(summary)
    print(table(summaries, [link.show for link in chain.links]))
    return 0
