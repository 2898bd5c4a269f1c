"""Bad folders that are read or shared: saved conversations, pushes and model cards."""

import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, PngImagePlugin
from safetensors.numpy import save
from tests.hub.carded import put_card
from tests.processes import ROOT

from blip3o_hf.assets import packaged_model_path

from .cases import (
    BAD,
    COUNTED,
    EITHER,
    OUTSIDE,
    REFUSED,
    RIGHT,
    SECRET,
    Case,
    Maker,
    command,
    damaged,
    hostile_value,
    nested,
    packaged,
    paths_in,
    pick,
    put_no_file,
    set_at,
)
from .checkpoint_cases import Payload
from .image_cases import FORMATS, encoded, png

TOKEN = "hf_" + "aB3dE5gH7j" * 4
SECRETS = {
    "of the Hub": TOKEN,
    "of Amazon": "AKIA" + "ABCDEFGH12345678",
    "of Google": "AIza" + "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3fG",
    "of GitHub": "ghp_" + "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3fGh",
    "of GitLab": "glpat-" + "aB3dE5gH7jK9mN1pQ3sT",
    "of Slack": "xoxb-" + "123456789012-123456789012-aB3dE5gH7jK9mN1pQ3sT5vW7",
    "of OpenAI": "sk-" + "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3fGh12345678abcd",
    "of PGP": "-----BEGIN PGP PRIVATE KEY BLOCK-----",
    "of SSH": "-----BEGIN OPENSSH PRIVATE KEY-----",
}


# Conversations


def conversation(rng: np.random.Generator, folder: Path) -> dict:
    """A whole saved conversation in `talk`."""
    talk = folder / "talk"
    talk.mkdir()
    (talk / "image-0.png").write_bytes(encoded(rng, "PNG"))
    messages = [
        {"role": "user", "content": "a red circle", "prompt": "a red circle"},
        {"role": "assistant", "content": [{"type": "image", "image": "image-0.png"}]},
        {"role": "user", "content": [{"type": "text", "text": "what is it?"}]},
        {"role": "assistant", "content": "red"},
    ]
    return {"format": 1, "messages": messages}


def loaded(rng: np.random.Generator, folder: Path, content: object, what: str, expected: tuple = EITHER) -> Case:
    if content is not None:
        (folder / "talk" / "conversation.json").write_text(json.dumps(content))
    names = ("talk", "conversation.json", "image-0.png", "message")
    if rng.random() < 0.5:
        return Case(what, expression="talk('talk')", names=names, expected=expected)
    typed = "/ask what is it?\n" if rng.random() < 0.3 else "/quit\n"
    names += ("conversation",)
    return command("chat --open talk --max-new-tokens 1", typed=typed, what=what, names=names, expected=expected)


def bad_message(rng: np.random.Generator, folder: Path) -> Case:
    content = conversation(rng, folder)
    path, value = pick(rng, paths_in(content)), hostile_value(rng)
    set_at(content, path, value)
    return loaded(rng, folder, content, f"a conversation with {'.'.join(map(str, path))}: {value!r:.60}")


def bad_format(rng: np.random.Generator, folder: Path) -> Case:
    content = conversation(rng, folder)
    content["format"] = pick(rng, (0, 2, 99, "1", None, [], -1, 1.5, 10**30))
    return loaded(rng, folder, content, f"format: {content['format']!r}", (REFUSED,))


def damaged_conversation(rng: np.random.Generator, folder: Path) -> Case:
    text = json.dumps(conversation(rng, folder)).encode()
    if rng.random() < 0.3:
        data, what = pick(
            rng, ((b"[" * 100_000, "deep"), (b"5", "a number"), (b"{}", "empty"), (b"\xff" * 9, "no text"))
        )
    else:
        data, what = damaged(rng, text)
    (folder / "talk" / "conversation.json").write_bytes(data)
    return loaded(rng, folder, None, f"conversation.json {what}")


def bad_picture(rng: np.random.Generator, folder: Path) -> Case:
    """Pictures that are damaged, links, or elsewhere."""
    content = conversation(rng, folder)
    path = folder / "talk" / "image-0.png"
    kind = pick(rng, ("damaged", "link", "pipe", "missing", "elsewhere", "bomb", "folder", "inner link"))
    expected: tuple[str, ...] = (REFUSED,)
    if kind == "damaged":
        path.write_bytes(damaged(rng, path.read_bytes())[0])
        expected = EITHER
    elif kind == "elsewhere":
        names = (f"../../{OUTSIDE}/{SECRET}.png", str(folder.parent / OUTSIDE / f"{SECRET}.png"), "..", "", "a/b.png")
        content["messages"][1]["content"][0]["image"] = pick(
            rng, (*names, "/dev/zero", 5, None, ["x"], "image-0.png\0")
        )
    elif kind == "bomb":
        path.write_bytes(png(50_000, 50_000))
    else:
        path.unlink()
        if kind == "link":
            path.symlink_to(f"../../{OUTSIDE}/{SECRET}.png")
        elif kind == "inner link":
            path.symlink_to("conversation.json")
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
    return loaded(rng, folder, content, f"a picture that is {kind}", expected)


def bad_file(rng: np.random.Generator, folder: Path) -> Case:
    conversation(rng, folder)
    path = folder / "talk" / "conversation.json"
    kind = pick(rng, ("pipe", "device", "folder", "missing", "loop"))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to("conversation.json")
    return loaded(rng, folder, None, f"conversation.json is {kind}", (REFUSED,))


def saving(rng: np.random.Generator, folder: Path) -> Case:
    """A place where nothing can be saved."""
    (folder / "file").touch()
    where = pick(rng, ("file", "file/x"))
    case = {"what": f"saving at {where}", "names": (where,), "expected": (REFUSED,)}
    return command(f"chat --save {where} --max-new-tokens 1", typed="/ask what is it?\n", **case)


CONVERSATIONS: tuple[Maker, ...] = (
    bad_message,
    bad_picture,
    damaged_conversation,
    bad_format,
    bad_message,
    bad_file,
    bad_picture,
    saving,
)


# Pushes


def shared(rng: np.random.Generator, folder: Path) -> Path:
    """A folder that may be pushed, in `mine`: of the packaged pipeline, or of its processor alone."""
    if rng.random() < 0.15:
        mine = packaged(folder, "mine")
    else:
        mine = Path(shutil.copytree(Path(packaged_model_path(), "processor"), folder / "mine"))
    put_card(mine)
    return mine


def pushed(what: str, *names: str, expected: tuple[str, ...] = (REFUSED,)) -> Case:
    return command("push mine me/x --dry-run", what=what, names=names or ("mine",), expected=expected)


def good_push(rng: np.random.Generator, folder: Path) -> Case:
    mine = shared(rng, folder)
    (mine / "notes.txt").write_text("hf_ is how tokens begin; sk- too; AKIA")
    (mine / "sample.png").write_bytes(encoded(rng, "PNG"))
    (mine / "inner.json").symlink_to("processor_config.json")
    return pushed("nothing bad", expected=(RIGHT,))


def linked_push(rng: np.random.Generator, folder: Path) -> Case:
    mine = shared(rng, folder)
    outside = folder.parent / OUTSIDE
    target = pick(
        rng, ("/etc/passwd", str(outside / f"{SECRET}.txt"), "none", "/dev/zero", "..", str(outside), "notes.txt")
    )
    (mine / "notes.txt").symlink_to(target)
    return pushed(f"a link to {target}", "notes.txt")


def secret_push(rng: np.random.Generator, folder: Path) -> Case:
    mine = shared(rng, folder)
    kind = pick(rng, list(SECRETS))
    secret = SECRETS[kind]
    way = pick(rng, ("text", "UTF-16", "deep", "picture", "compressed", "metadata", "JSON", "late", "card", "after"))
    name = "notes.txt"
    if way == "UTF-16":
        (mine / name).write_bytes(f"key = {secret}\n".encode("utf-16"))
    elif way == "deep":
        name = "a/b/c/d/notes.md"
        (mine / name).parent.mkdir(parents=True)
        (mine / name).write_text(secret)
    elif way in ("picture", "compressed"):
        info, name = PngImagePlugin.PngInfo(), "sample.png"
        info.add_text("note", f"the key {secret}", zip=way == "compressed")
        Image.new("RGB", (8, 8)).save(mine / name, pnginfo=info)
    elif way == "metadata":
        name = "extra.safetensors"
        (mine / name).write_bytes(save({"x": np.zeros(2, np.float32)}, {"note": secret}))
    elif way == "JSON":
        name = "extra.json"
        (mine / name).write_text(json.dumps({"a": {"b": [secret]}}))
    elif way == "late":
        (mine / name).write_bytes(b"x\n" * int(rng.integers(2**20, 2**22)) + secret.encode())
    elif way == "card":
        name = "README.md"
        with (mine / name).open("a") as file:
            file.write(f"\nKey: {secret}\n")
    elif way == "after":
        name = "sample.png"
        (mine / name).write_bytes(encoded(rng, "PNG") + secret.encode())
    else:
        (mine / name).write_text(f"password: {secret}\n")
    # Weights beside a processor make the folder one of an unknown kind, which is refused as well.
    return pushed(f"a key {kind} in {name}, {way}", name, "mine")


def named_push(rng: np.random.Generator, folder: Path) -> Case:
    mine = shared(rng, folder)
    name = pick(
        rng,
        (
            ".env",
            "prod.env",
            "id_rsa",
            "a.PKL",
            "b.PT",
            "c.dill",
            "d.keras",
            "e.pth",
            "f.npy",
            "optimizer.pt",
            "checkpoint-5/x.txt",
            "x.incomplete",
            ".partial-abc.png",
            "x.lock",
            "x~",
            ".hidden",
            "key.pem",
            "token",
            "credentials.json",
            f"{TOKEN}.txt",
            "training_args.bin",
            ".netrc",
        ),
    )
    (mine / name).parent.mkdir(exist_ok=True)
    (mine / name).write_text("x")
    return pushed(f"a file {name}", name)


def pickled_push(rng: np.random.Generator, folder: Path) -> Case:
    mine = shared(rng, folder)
    name = pick(rng, ("notes.txt", "weights", "data.json5", "a.md"))
    (mine / name).write_bytes(pickle.dumps(Payload(), protocol=int(rng.integers(2, 6))))
    return pushed(f"a pickle called {name}", name)


def unfinished_push(rng: np.random.Generator, folder: Path) -> Case:
    """What is missing, damaged, or no file."""
    mine = shared(rng, folder)
    kind = pick(rng, ("pipe", "weights", "card", "no card", "settings", "nothing", "socket", "deep"))
    names = ["mine"]
    expected: tuple[str, ...] = (REFUSED,)
    if kind == "pipe":
        os.mkfifo(mine / "notes.txt")
        names = ["notes.txt"]
    elif kind == "weights":
        data = save({"x": np.zeros(2, np.float32)})
        (mine / "model.safetensors").write_bytes(
            pick(rng, (data[:20], b"", struct.pack("<Q", 2**62) + b"{}", data[:-1]))
        )
    elif kind == "card":
        content, _ = damaged(rng, (mine / "README.md").read_bytes())
        (mine / "README.md").write_bytes(content)
        expected, names = EITHER, ["mine", "card", "README", "front matter", "model-index"]
    elif kind == "no card":
        (mine / "README.md").unlink()
        names = ["README.md", "card"]
    elif kind == "settings":
        path = mine / pick(rng, ("processor_config.json", "tokenizer_config.json")) if mine.is_dir() else mine
        path = path if path.is_file() else mine / "model_index.json"
        path.write_bytes(pick(rng, (b"[1]", b"[" * 100_000, b"{", b"\xff", b"5")))
        expected = EITHER
    elif kind == "nothing":
        for path in mine.iterdir():
            path.rename(folder / f"moved-{path.name}")
    elif kind == "socket":
        os.mknod(mine / "notes.txt", 0o140644)
        names = ["notes.txt"]
    else:
        deep = mine
        for _ in range(200):
            deep = deep / "deep"
        deep.mkdir(parents=True)
        (deep / "a.txt").write_text("x")
        expected = EITHER
    return pushed(kind, *names, expected=expected)


PUSHES: tuple[Maker, ...] = (
    secret_push,
    linked_push,
    named_push,
    unfinished_push,
    pickled_push,
    secret_push,
    good_push,
)


# Cards


def card(rng: np.random.Generator, folder: Path) -> tuple[dict, str]:
    """The front matter of a whole card, and its text."""
    text = pick(rng, sorted((ROOT / "model_cards").glob("*.md"))).read_text()
    _, front, rest = text.split("---\n", 2)
    return yaml.safe_load(front), rest


def looked_at(rng: np.random.Generator, folder: Path, text: str | bytes, what: str, expected: tuple = EITHER) -> Case:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    (folder / "card.md").write_bytes(data)
    return command("card check card.md", what=what, names=("card.md",), expected=expected)


def damaged_card(rng: np.random.Generator, folder: Path) -> Case:
    path = pick(rng, sorted((ROOT / "model_cards").glob("*.md")))
    content, what = damaged(rng, path.read_bytes())
    return looked_at(rng, folder, content, f"{path.name} {what}")


def bad_front(rng: np.random.Generator, folder: Path) -> Case:
    front, rest = card(rng, folder)
    path, value = pick(rng, paths_in(front)), hostile_value(rng)
    set_at(front, path, value)
    text = yaml.safe_dump(front, sort_keys=False)
    return looked_at(rng, folder, f"---\n{text}---\n{rest}", f"{'.'.join(map(str, path))}: {value!r:.60}")


def strange_card(rng: np.random.Generator, folder: Path) -> Case:
    kinds = {
        "deep": f"a: {'[' * 50_000}",
        "deep mappings": "{a: " * 20_000,
        "laughs": "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",
        "a tag of Python": "license: !!python/object/apply:os.system ['touch was_run']",
        "a number": "5",
        "a list": "[1, 2]",
        "nothing": "",
        "deep results": f"license: mit\nmodel-index: {json.dumps(nested(60))}",
        "a long licence": f"license: {'x' * 200_000}",
    }
    rests = ("x [" * 80_000, "# A\n```python\n" + "(" * 90_000 + "\n```\n", "```" * 90_000, "\0" * 1000, "|" * 200_000)
    what, rest = (
        pick(rng, list(kinds)),
        pick(rng, (*rests, "# A card\n", "\udcff", "[x](../../../etc/passwd)\n" * 5000)),
    )
    text = f"---\n{kinds[what]}\n---\n{rest}"
    return looked_at(rng, folder, text, f"{what}, and {rest[:20]!r}", BAD)


def no_card(rng: np.random.Generator, folder: Path) -> Case:
    kind = pick(rng, ("pipe", "folder", "device", "missing", "large", "link", "empty"))
    path = folder / "card.md"
    if kind in ("pipe", "folder", "device"):
        put_no_file(path, kind)
    elif kind == "large":
        path.write_bytes(b"---\nlicense: mit\n---\n" + b"x" * 5_000_000)
    elif kind == "link":
        put_no_file(path, "loop")
    elif kind == "empty":
        path.touch()
    expected = (COUNTED,) if kind == "empty" else BAD
    return command("card check card.md", what=f"a card that is {kind}", names=("card.md",), expected=expected)


def bad_results(rng: np.random.Generator, folder: Path) -> Case:
    """Files of scores, for a card."""
    content = {"format": 1, "scores": [{"task": "x", "name": "y", "passed": 1, "total": 2}]}
    path, value = pick(rng, paths_in(content)), hostile_value(rng)
    set_at(content, path, value)
    data = pick(rng, (json.dumps(content).encode(), b"[" * 50_000, b"5", b"", rng.bytes(50), b"[]", b"null"))
    (folder / "results.json").write_bytes(data)
    put_card(folder)
    return command(
        "card write README.md --results results.json",
        what=f"results of {data[:60]!r}",
        names=("results.json",),
        expected=(REFUSED,),
    )


CARDS: tuple[Maker, ...] = (damaged_card, bad_front, strange_card, no_card, bad_front, bad_results)
__all__ = ["CARDS", "CONVERSATIONS", "FORMATS", "PUSHES"]
