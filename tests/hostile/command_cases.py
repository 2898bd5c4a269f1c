"""Command lines with bad numbers, paths, seeds and sizes."""

import os
from pathlib import Path

import numpy as np

from .cases import REFUSED, Case, Maker, command, pick
from .data_cases import lines, pictures, rows
from .image_cases import encoded

DRAWING = ("generate", "a red circle", "-o", "out.png", "--steps", "1", "--attempts", "1", "--no-plan")
EDITING = ("edit", "make it blue", "in.png", "-o", "out.png", "--steps", "1", "--attempts", "1", "--no-plan")
RECONSTRUCTING = ("reconstruct", "in.png", "-o", "out.png", "--mode", "autoencoder")
DESCRIBING = ("describe", "in.png", "what is it?", "--max-new-tokens", "1")
CHECKING = ("data", "check", "rows.jsonl")
CHATTING = ("chat", "--max-new-tokens", "1")
TUNING = ("finetune", "--data", "rows.jsonl", "--output", "runs/x", "--steps", "1", "--decoder-steps", "1")
EVALUATING = ("evaluate", "--per-family", "1", "--per-kind", "1", "--steps", "1", "--attempts", "1", "--no-plan")
WHOLE = ("x", "", "1.5", "nan", "1e3", "½", "9" * 5000, "0x10", "1_0_", "-1", "None")
"""That are no whole numbers, or negative."""
NUMBERS = ("x", "", "nan", "inf", "-inf", "-1", "1e400", "1,5", "None")
PATHS = (
    "",
    ".",
    "/",
    "/dev/null/x.png",
    "no/such/x.png",
    "x",
    "x.exe",
    "x" * 300 + ".png",
    "in.png/x.png",
    "~nobody/x.png",
)
MODELS = (
    "",
    ".",
    "/",
    "../..",
    "/dev/zero",
    "no/such/folder",
    "someone/model",
    "x",
    "in.png",
    "a b",
    "~nobody",
    "x" * 5000,
)
OPTIONS: dict[tuple[str, ...], dict[str, tuple[str, ...]]] = {
    DRAWING: {
        "--steps": (*WHOLE, "0", "1000000000"),
        "--guidance": (*NUMBERS, "1e30", "1e308"),
        "--attempts": (*WHOLE, "0"),
        "--seed": (*WHOLE, "9223372036854775808"),
        "-n": (*WHOLE, "0", "1000000000"),
        "-o": PATHS,
        "--model": MODELS,
        "--lora": ("", "none", "/", "/dev/zero", "in.png", "rows.jsonl:2", "none:nan", "someone/lora"),
    },
    EDITING: {
        "--steps": (*WHOLE, "0"),
        "--guidance": NUMBERS,
        "--seed": WHOLE,
        "-o": PATHS,
        "--sheet": (*PATHS[1:], "no/x.png"),
        "--model": MODELS,
    },
    RECONSTRUCTING: {
        "--mode": ("", "x", "both,unified"),
        "-o": PATHS,
        "--seed": WHOLE,
        "--encoder": ("none", "/", "/dev/zero", "in.png", "someone/encoder"),
    },
    DESCRIBING: {"--max-new-tokens": (*WHOLE, "0"), "--model": MODELS},
    CHECKING: {
        "--limit": (*WHOLE, "0"),
        "--max-bad-share": (*NUMBERS, "2"),
        "--max-length": (*WHOLE, "0"),
        "--format": ("", "x", "os:system", "tar", "blip3o_hf.cli:main"),
        "--histogram": PATHS[1:],
        "--model": MODELS[1:],
    },
    CHATTING: {
        "--open": ("none", "/", "/dev/zero", "in.png", "."),
        "--pictures": ("none", "/dev/zero", "in.png"),
        "--seed": WHOLE,
        "--steps": ("x", "1.5"),
        "--max-new-tokens": ("x", "1.5", ""),
    },
    TUNING: {
        "--steps": (*WHOLE, "0"),
        "--decoder-steps": WHOLE,
        "--batch-size": (*WHOLE, "0", "1000000000000"),
        "--model": MODELS,
        "--data": ("", "none", "/dev/zero", "in.png", "/proc/self/mem"),
        "--threads": (*WHOLE, "0", "1000000"),
    },
    EVALUATING: {
        "--per-family": (*WHOLE, "0"),
        "--per-kind": (*WHOLE, "0"),
        "--pictures": WHOLE,
        "--per-edit": WHOLE,
        "--seed": (*WHOLE, "9223372036854775808"),
        "--encoder": ("none", "in.png", "/dev/zero"),
        "--output": ("", ".", "no/x.json", "in.png/x"),
        "--model": MODELS,
    },
}


def files(rng: np.random.Generator, folder: Path) -> None:
    """What the commands read."""
    (folder / "in.png").write_bytes(encoded(rng, "PNG"))
    (folder / "rows.jsonl").write_bytes(lines(rows(pictures(rng, folder))))


def bad_option(rng: np.random.Generator, folder: Path) -> Case:
    files(rng, folder)
    words = pick(rng, list(OPTIONS))
    option = pick(rng, list(OPTIONS[words]))
    value = pick(rng, OPTIONS[words][option])
    joined = (f"{option}={value}",) if option.startswith("--") else (option, value)
    names = (
        option.lstrip("-").replace("-", "_"),
        option,
        value.rpartition("/")[0][:20] or value.partition(":")[0][:20] or "''",
        {"-n": "num", "-o": "output"}.get(option, "?"),
        os.path.dirname(os.path.expanduser(value)) or "?",
    )
    more = ("--model", "blip3o-tiny") if words == CHECKING and option == "--max-length" else ()
    return Case(
        f"{words[0]} {option} {value[:40]!r}",
        (*words, *more, *joined),
        names=names,
        expected=(REFUSED,),
        typed="/draw a circle\n" if words == CHATTING else "",
    )


def bad_text(rng: np.random.Generator, folder: Path) -> Case:
    """Prompts, questions and instructions that say nothing, or too much."""
    files(rng, folder)
    text = pick(rng, ("", " ", "\n", "x " * 50_000, "<|im_end|>" * 600, "<|image_pad|>", "[IMG]" * 500, "\udcff"))
    words = pick(rng, (DRAWING, EDITING, DESCRIBING))
    place = 2 if words == DESCRIBING else 1
    given = (*words[:place], text, *words[place + 1 :])
    what = f"{words[0]} with the text {text[:30]!r}"
    names = ("prompt", "question", "instruction", "text", "say", "token")
    return Case(what, given, names=names, writes=("out.png",))


def bad_talk(rng: np.random.Generator, folder: Path) -> Case:
    """Lines of a conversation."""
    files(rng, folder)
    line = pick(
        rng,
        (
            "/x",
            "/image",
            "/image none.png",
            "/image 'x",
            "/image /dev/zero",
            "/forget x",
            "/forget -1",
            "/forget " + "9" * 5000,
            "/draw",
            "/edit make it blue",
            "/edit",
            "/ask",
            "/plan",
            "/",
            "/image in.png in.png in.png in.png in.png in.png in.png in.png in.png in.png in.png in.png\n/ask x",
            "x " * 5000,
            "/ask <|image_pad|>",
            "/ask \0",
            "/\udcff",
        ),
    )
    names = (line.partition(" ")[0], *line.split()[1:2], "turn", "edit", "quot", "conversation", "image")
    return command(
        "chat --max-new-tokens 1 --steps 1 --attempts 1", typed=line + "\n", what=f"chat: {line[:60]!r}", names=names
    )


def bad_words(rng: np.random.Generator, folder: Path) -> Case:
    """Words that are no command line."""
    line = pick(
        rng,
        (
            (),
            ("x",),
            ("",),
            ("generate",),
            ("describe",),
            ("data", "x", "y"),
            ("card", "x", "y"),
            ("train", "tiny/generation", "--x"),
            ("train", "tiny/generation", "--plan", "--threads", "x"),
            ("push", "."),
            ("push", ".", "a/b/c", "--dry-run"),
            ("push", "none", "me/x", "--dry-run"),
            ("push", "/dev/zero", "me/x", "--dry-run"),
            ("export", "none", "out"),
            ("export", ".", "out"),
            ("convert", "none", "out"),
            ("convert", ".", "out", "--max-shard-size", "0GB"),
            ("convert", ".", "out", "--max-shard-size", "x"),
            ("convert", ".", "out", "--target-encoder-heads", "-1"),
            ("app", "--port", "99999"),
            ("app", "--port", "x"),
            ("app", "--host", "999.1.1.1"),
            ("card", "check", "none"),
            ("card", "check", "/dev/zero"),
            ("card", "write", ".", "--license", "\n"),
            ("card", "write", ".", "--results", "none"),
            ("precompute", "none"),
            ("precompute", "tiny/dit_only", "--dtype", "x"),
            ("env", "x"),
        ),
    )
    names = ("argument", "arguments", "required", "COMMAND", *line)
    return Case(f"the words {line!r}", line or ("--",), names=names, expected=(REFUSED,))


MAKERS: tuple[Maker, ...] = (bad_option, bad_option, bad_option, bad_text, bad_option, bad_talk, bad_option, bad_words)
