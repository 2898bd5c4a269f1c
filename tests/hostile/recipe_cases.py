"""Bad recipes, given to `train RECIPE --plan`, and bad overrides."""

import itertools
import re
from pathlib import Path

import numpy as np
import yaml
from tests.processes import ROOT

from .cases import BAD, EITHER, REFUSED, Case, Maker, command, damaged, hostile_value, paths_in, pick, set_at

RECIPES = ("generation", "joint", "understanding", "decoder", "encoder", "dit_only", "diffusion_decoder", "vae")
BAD_TRAINING = {
    "max_steps": ("x", [], {}, float("nan"), -5, 1.5, "1e400", 10**30),
    "learning_rate": ("x", [], float("inf"), float("nan"), -1, {}),
    "muon_learning_rate": ("x", float("inf"), float("nan"), -1),
    "per_device_train_batch_size": (0, -1, "x", 1.5, [], 10**30),
    "gradient_accumulation_steps": (0, -1, "x", [], 1.5),
    "bf16": ("perhaps", 2, [], "x"),
    "compile_transformer": ("x", [], 3),
    "seed": ("x", -1, 1.5, [], 10**30),
    "weight_decay": ("x", float("nan"), float("inf"), []),
    "warmup_steps": ("x", -1, [], float("nan")),
    "max_grad_norm": (0, -1, "x", float("nan")),
    "ema_decay": (0, 1, -1, 2, "x", float("nan")),
    "noise_draws": (0, -1, "x", 1.5),
    "lr_scheduler_type": ("x", 5, []),
    "optim": ("x", 5, []),
    "save_steps": ("x", -1, []),
    "logging_steps": ("x", -1, []),
    "evaluation_steps": (-1, "x", []),
    "dataloader_num_workers": (-1, "x", 10**6),
    "spike_factor": (0, -1, "x", float("nan")),
    "max_skipped_steps": (-1, "x"),
    "global_batch_size": (0, -1, "x", []),
    "train": (5, "x", ["x"], [5], {}),
    "learning_rates": (5, "x", {"queries": "x"}, {"queries": -1}),
    "max_length": (0, -1, "x"),
    "x": (1,),
    "__class__": (1,),
}
BAD_SOURCES: dict[str, tuple] = {
    "reconstruct": ("perhaps", 5, []),
    "max_pixels": (0, -1, "x", []),
    "min_size": (-1, "x"),
    "short_caption_rate": (-1, 2, "x", float("nan")),
    "prompt_template": ("x", "{x}", "{", 5.5, []),
    "image": ([], {}),
    "path": (5, {}, [], "", None),
    "format": ("x", "os:system", []),
    "seed": ("x", -1),
    "x": (1,),
}
SECTIONS = {"inputs": (5, "x", []), "model": (5, "x", []), "data": (5, "x", []), "training": (5, "x", [])}
SECTIONS |= {"evaluation": (5, "x", []), "stage": (5, "x", [], {}, "os:system", "os.path:join", None, "")}
SECTIONS |= {"output_dir": ([], {}, None), "x": (1,), "source": ("x",)}


def planned(what: str, *more: str, names: tuple[str, ...] = (), expected: tuple[str, ...] = EITHER) -> Case:
    return command("train recipe.yaml --plan", *more, what=what, names=("recipe.yaml", *names), expected=expected)


def content_of(rng: np.random.Generator, *stages: str) -> dict:
    """A whole recipe of the repository."""
    return yaml.safe_load((ROOT / "recipes" / "tiny" / f"{pick(rng, stages or RECIPES)}.yaml").read_text())


def write(folder: Path, content: object) -> None:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def bad_training(rng: np.random.Generator, folder: Path) -> Case:
    content = content_of(rng)
    key = pick(rng, list(BAD_TRAINING))
    value = pick(rng, BAD_TRAINING[key])
    if rng.random() < 0.3 and not isinstance(value, dict):
        write(folder, content)
        written = str(value).lower() if isinstance(value, float) else str(value)
        return planned(f"training.{key}={value!r}", f"training.{key}={written}", names=(key,), expected=BAD)
    content["training"][key] = value
    write(folder, content)
    return planned(f"training.{key}: {value!r}", names=(key,), expected=BAD)


def bad_section(rng: np.random.Generator, folder: Path) -> Case:
    content = content_of(rng)
    key = pick(rng, list(SECTIONS))
    content[key] = pick(rng, SECTIONS[key])
    write(folder, content)
    return planned(f"{key}: {content[key]!r}", names=(key,), expected=BAD)


def bad_source(rng: np.random.Generator, folder: Path) -> Case:
    content = content_of(rng, "generation")
    key = pick(rng, list(BAD_SOURCES))
    source = {"path": "photos", key: pick(rng, BAD_SOURCES[key])}
    content["data"] = {"sources": pick(rng, ([source], [{"path": "x"}, source]))}
    if rng.random() < 0.2:
        content["data"] = {"sources": pick(rng, (5, "x", {}, [], [5], [[]], [None], None))}
        write(folder, content)
        return planned(f"data: {content['data']!r}", names=("sources",))
    write(folder, content)
    return planned(f"a source of {source!r}", names=(key, "photos"), expected=EITHER)


def any_value(rng: np.random.Generator, folder: Path) -> Case:
    content = content_of(rng)
    path, value = pick(rng, paths_in(content)), hostile_value(rng)
    if value in ("\0", "\ud800"):
        value = "\x01"
    set_at(content, path, value)
    try:
        write(folder, content)
    except yaml.YAMLError:
        (folder / "recipe.yaml").write_text(repr(content))
    return planned(f"{'.'.join(map(str, path))}: {value!r:.60}", names=(str(path[-1]),))


def damaged_yaml(rng: np.random.Generator, folder: Path) -> Case:
    text = (ROOT / "recipes" / "tiny" / f"{pick(rng, RECIPES)}.yaml").read_bytes()
    content, what = damaged(rng, text)
    (folder / "recipe.yaml").write_bytes(content)
    return planned(f"a recipe {what}", names=("recipe",))


def strange_yaml(rng: np.random.Generator, folder: Path) -> Case:
    letters = "abcdefghijklmnop"
    laughs = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, name in itertools.pairwise(letters):
        laughs.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    good = "stage: generation\noutput_dir: runs/x\n"
    kinds = {
        "deep brackets": "[" * 50_000,
        "deep mappings": "a: " + "{a: " * 50_000,
        "deep questions": "? " * 20_000,
        "a billion laughs": good + "data: {x: 1}\n" + "\n".join(laughs),
        "a key twice": good + "stage: joint\n",
        "a section twice": good + "training: {seed: 1}\ntraining: {seed: 2}\n",
        "a key in a section twice": good + "training: {max_steps: 1, max_steps: 2}\n",
        "a tag of Python": good + "data: !!python/object/apply:os.system ['touch was_run']\n",
        "a name of Python": good + "data: !!python/name:os.system\n",
        "a tag": good + "data: !x {}\n",
        "binary": good + "data: !!binary aGVsbG8=\n",
        "a set": good + "data: !!set {a, b}\n",
        "a merge": good + "data: {<<: {x: 1}}\n",
        "a merge of itself": good + "data: &a {<<: *a}\n",
        "two documents": good + "---\n" + good,
        "a list": "- a\n- b\n",
        "nothing": "",
        "a text": "hello",
        "UTF-16": "",
        "zeros": "\0" * 100,
        "tabs": "stage:\tgeneration\n\toutput_dir: x\n",
        "a long number": good + "training: {seed: " + "9" * 10_000 + "}\n",
        "base sixty": good + "training: {max_steps: 1:30:00}\n",
        "a date": good + "training: {seed: 2020-01-01}\n",
        "keys that are no texts": good + "training: {1: 2, null: 3, [a]: 4}\n",
        "five megabytes": good + "# " + "x" * 5_000_000 + "\n",
        "a long list": good + "inputs: {model: [" + "x [" * 100_000,
    }
    what = pick(rng, list(kinds))
    text = kinds[what]
    (folder / "recipe.yaml").write_bytes(good.encode("utf-16")[:-1] if what == "UTF-16" else text.encode())
    is_fine = what in ("a merge", "a merge of itself", "five megabytes", "binary", "base sixty")
    return planned(f"a recipe of {what}", names=("recipe", "training"), expected=EITHER if is_fine else BAD)


def bad_override(rng: np.random.Generator, folder: Path) -> Case:
    write(folder, content_of(rng))
    text = pick(
        rng,
        (
            "x",
            "=1",
            "training=5",
            "training.=1",
            ".=1",
            "training.seed.x=1",
            "data.sources.0.path=x",
            "data.sources.99999999999.path=x",
            "stage.x=1",
            "training.max_steps=[",
            "training.max_steps={a: b",
            "training.seed=" + "[" * 10_000,
            "training.seed=!!python/object/apply:os.system [ls]",
            "a.b.c.d.e.f=1",
            "training.learning_rate=&a [*a]",
            "=".join("x" * 100),
            "training.seed=\ud800",
        ),
    )
    return planned(
        f"the override {text[:60]!r}", text, names=(re.split("[.=]", text)[0][:20], text[:20]), expected=BAD
    )


def no_recipe(rng: np.random.Generator, folder: Path) -> Case:
    (folder / "empty").mkdir()
    name = pick(rng, ("none.yaml", "empty", "/dev/zero", "/", "tiny/none", "", "x" * 300, "a\nb", "../x", "~nobody/x"))
    line = pick(rng, ("train", "chain", "precompute"))
    more = ("--plan",) if line == "train" else ()
    return command(
        line, name, *more, what=f"{line} {name[:40]!r}", names=(name[:20] or "recipe", "YAML"), expected=(REFUSED,)
    )


def bad_chain(rng: np.random.Generator, folder: Path) -> Case:
    """A chain that can start nothing."""
    content = pick(
        rng,
        (
            {"stages": 5},
            {"stages": [5]},
            {"stages": []},
            {"stages": [{"recipe": "none.yaml"}]},
            {"stages": [{"recipe": ["x"]}]},
            {"folder": 5, "stages": ["none.yaml"]},
            [],
            5,
            None,
            {"x": 1},
        ),
    )
    (folder / "chain.yaml").write_text(pick(rng, (yaml.safe_dump(content), "[" * 20_000, "a: &a [*a]", "\0")))
    return command(
        "chain chain.yaml", what=f"a chain of {content!r}", names=("chain.yaml", "none.yaml"), expected=(REFUSED,)
    )


MAKERS: tuple[Maker, ...] = (
    bad_training,
    bad_training,
    strange_yaml,
    bad_section,
    any_value,
    bad_source,
    damaged_yaml,
    bad_training,
    bad_override,
    no_recipe,
    any_value,
    strange_yaml,
    bad_chain,
)
