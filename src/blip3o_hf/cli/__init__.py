"""The command `blip3o-hf`: a parser and thin commands. Nothing heavy is imported before a command runs."""

import argparse
import os
import shlex
import sys
from importlib import import_module

from .. import __version__

COMMANDS = {
    "demo": "draw a grid of pictures and describe one, with the packaged model",
    "generate": "draw images from a prompt",
    "describe": "answer a question about an image",
    "edit": "change an image as an instruction says",
    "reconstruct": "draw images again, beside the originals, with how close they are",
    "chat": "talk in words and pictures",
    "app": "open a page in the browser to chat, draw, edit and reconstruct",
    "serve": "answer OpenAI's images and chat API with a model",
    "finetune": "fine-tune a model on your own images with captions",
    "train": "run one training stage from a recipe",
    "chain": "train all stages of a model, one after another",
    "study": "train several ways on equal budgets and seeds, and say what their comparison decides",
    "precompute": "compute target features and conditions of a recipe's data once, for faster training",
    "data": "check training data: counts, sizes, caption lengths, bad items, duplicates",
    "collect": "make training data: prompts, and pictures from a teacher, as shards with manifests",
    "recaption": "write long and short captions for pictures that you have",
    "evaluate": "score a model on a benchmark, or on all that the tiny world asks",
    "regenerate": "make a result again from its manifest, and say whether it is the same",
    "distance": "compare the pictures of a folder with those of a reference: Frechet distance, KID, CMMD",
    "compare-backbone": "run tasks of lmms-eval on a model and on its bare backbone, and compare each answer",
    "human-study": "let people compare pictures of several systems, blind, and analyse their answers",
    "card": "check a model card before it is published, or write one",
    "convert": "write a published checkpoint in our layout",
    "export": "write a pipeline for shipping: weights rounded, or with the code to open it without this package",
    "push": "upload a model, processor, LoRA or precomputed features to the Hugging Face Hub",
    "env": "print versions for a bug report",
}


# Arguments that are paths: `--output=~/runs` comes as it is, since shells replace `~` only at the beginning of a word.
PATHS = ("answers", "backbone", "batch_in", "batch_out", "categories", "chain", "criteria", "data", "encoder")
PATHS += ("exclude", "folder", "histogram", "image", "images", "include_path", "manifest", "model", "open", "out")
PATHS += ("output", "path", "prompts", "recipe", "reference", "results", "save", "sheet", "source", "study")
PATHS += ("target", "verdicts", "report", "study_file")

# Arguments that a model reads.
TEXTS = ("prompt", "negative_prompt", "instruction", "question")

SEEDS = 2**63


def expand_home(arguments: argparse.Namespace) -> None:
    """Replace `~` at the beginning of every path by the home folder, also where the shell did not."""
    for name in PATHS:
        value = getattr(arguments, name, None)
        if isinstance(value, str):
            setattr(arguments, name, _expanded(value))
        elif isinstance(value, list | tuple):
            setattr(arguments, name, [_expanded(each) for each in value])


def _expanded(path: str) -> str:
    return os.path.expanduser(path) if path.startswith("~") else path


def check_seed(arguments: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: when there is a seed that PyTorch does not take.
    """
    seed = getattr(arguments, "seed", None)
    if seed is not None and not 0 <= seed < SEEDS:
        raise ValueError(f"--seed must be a whole number from 0 to {SEEDS - 1}. Got {seed}. Use a smaller one.")


def check_texts(arguments: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: when a text is no Unicode; a path may be any.
    """
    for name in TEXTS:
        text = getattr(arguments, name, None) or ""
        if not text.isascii() and text.encode("utf-8", "replace") != text.encode("utf-8", "surrogatepass"):
            raise ValueError(f"The {name.replace('_', ' ')} must be text in UTF-8. Got {text!r:.80}. Type it again.")


def one_line(text: str) -> str:
    """
    A text without breaks of lines, and with other signs that a terminal would obey written out.

    >>> one_line("no valid YAML:\\n  in line 1")
    'no valid YAML: in line 1'
    """
    text = " ".join(line.strip() for line in text.splitlines())
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def build_parser() -> argparse.ArgumentParser:
    """The parser with every command's options."""
    parser = argparse.ArgumentParser(prog="blip3o-hf", description="BLIP3-o: one model that understands and draws.")
    parser.add_argument("--version", action="version", version=f"blip3o-hf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        module = import_module(f".{name.replace('-', '_')}", __name__)
        command = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point: runs one command; bad input ends it with one line on stderr and exit code 2."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and hasattr(arguments, "overrides") and not any(word.startswith("-") for word in rest):
        arguments.overrides += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    expand_home(arguments)
    try:
        check_seed(arguments)
        check_texts(arguments)
        return arguments.run(arguments) or 0
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"blip3o-hf {arguments.command}: {one_line(str(error))}", file=sys.stderr)
        return 2
    except MemoryError:
        model = f" {arguments.model}" if getattr(arguments, "model", None) else ""
        print(
            f"blip3o-hf {arguments.command}: this takes more memory than there is. Check the model{model} and the "
            f"data, or do less at once.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt as error:
        print(f"\ninterrupted: {error}" if str(error) else "\ninterrupted", file=sys.stderr)  # after a progress bar
        if str(error) and hasattr(arguments, "resume"):
            print(f"go on with: {resuming_command(sys.argv[1:] if argv is None else argv)}", file=sys.stderr)
        return 130


def resuming_command(words: list[str]) -> str:
    """The command that goes on where one was interrupted."""
    command, *rest = words
    return shlex.join(["blip3o-hf", command, *([] if "--resume" in rest else ["--resume"]), *rest])
