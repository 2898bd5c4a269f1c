"""Bad checkpoints: settings, weights, tokenizers and templates of a pipeline from elsewhere."""

import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from .cases import (
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
    replace_file,
    set_at,
)

SIZES = (0, -1, 1, 3, 7, 10**6, 10**9, 10**12, 2**63, 1.5, "8", "x", None, [], {}, True)
SIZE_KEYS = {
    "model": (
        "num_queries",
        "feature_dim",
        "transformer_config.dim",
        "transformer_config.num_layers",
        "transformer_config.in_channels",
        "transformer_config.condition_dim",
        "transformer_config.multiple_of",
        "backbone_config.text_config.hidden_size",
        "backbone_config.text_config.intermediate_size",
        "backbone_config.text_config.num_hidden_layers",
        "backbone_config.text_config.vocab_size",
        "backbone_config.vision_config.hidden_size",
        "backbone_config.vision_config.num_hidden_layers",
        "backbone_config.vision_config.intermediate_size",
        "backbone_config.vision_config.image_size",
    ),
    "decoder": ("dim", "in_channels", "num_layers", "patch_size"),
}
"""Settings of which any other value than the saved one contradicts the weights."""
PARTS = ("model/config.json", "decoder/config.json", "scheduler/scheduler_config.json", "model_index.json")
PARTS += ("processor/processor_config.json", "processor/tokenizer_config.json", "model/generation_config.json")
WEIGHTS = ("model/model.safetensors", "decoder/diffusion_pytorch_model.safetensors")


class Payload:
    """A pickle of this writes outside of its folder."""

    def __reduce__(self):
        return os.system, (f"touch ../{OUTSIDE}/was_run",)


def opened(what: str, *names: str, expected: tuple[str, ...] = EITHER, by: str = "opened('model')") -> Case:
    """The pipeline in `model`, opened and used."""
    return Case(what, expression=by, names=("model", *names), expected=expected)


def described(what: str, *names: str, expected: tuple[str, ...] = EITHER) -> Case:
    """The pipeline in `model`, by a command."""
    words = "generate x -o out.png --model model --steps 1 --attempts 1 --no-plan"
    return command(words, what=what, names=("model", *names), expected=expected, writes=("out.png",))


def either_way(rng: np.random.Generator, *arguments, **settings) -> Case:
    """In Python, or by a command."""
    return (opened if rng.random() < 0.7 else described)(*arguments, **settings)


def change(path: Path, key: tuple, value: object) -> None:
    """Set a value of a JSON file."""
    content = json.loads(path.read_text())
    set_at(content, key, value)
    path.write_text(json.dumps(content))


def bad_size(rng: np.random.Generator, folder: Path) -> Case:
    model = packaged(folder)
    part = pick(rng, list(SIZE_KEYS))
    key, value = pick(rng, SIZE_KEYS[part]), pick(rng, SIZES)
    change(model / part / "config.json", tuple(key.split(".")), value)
    is_filled_in = key in ("transformer_config.in_channels", "transformer_config.condition_dim")  # from other sizes
    is_same = is_filled_in or value in (None, "8")  # left out, or as good as a number
    what = f"{key} of {part} is {value!r}"
    return either_way(rng, what, key.rpartition(".")[2], expected=EITHER if is_same else (REFUSED,))


def bad_setting(rng: np.random.Generator, folder: Path) -> Case:
    """Any setting of any part."""
    model = packaged(folder)
    path = model / pick(rng, PARTS)
    content = json.loads(path.read_text())
    key, value = pick(rng, paths_in(content)), hostile_value(rng)
    set_at(content, key, value)
    path.write_text(json.dumps(content))
    what = f"{'.'.join(map(str, key))} of {path.relative_to(model)} is {value!r:.60}"
    return either_way(rng, what, *map(str, key))


def bad_defaults(rng: np.random.Generator, folder: Path) -> Case:
    """Settings of sampling that a repository brings."""
    path = packaged(folder) / "model_index.json"
    key = pick(rng, ("default_num_inference_steps", "default_guidance_scale", "default_num_attempts", "plan_top_p"))
    value = pick(rng, (10**9, -1, 0, "x", [], float("nan"), float("inf"), 1e30, {}, True, 10**30))
    change(path, (key,), value)
    words = "generate x -o out.png --model model"
    words += "" if key == "default_num_inference_steps" else " --steps 1"
    words += "" if key in ("default_num_attempts", "plan_top_p") else " --attempts 1 --no-plan"
    case = {"what": f"{key} is {value!r}", "names": ("model", key.removeprefix("default_")), "writes": ("out.png",)}
    return command(
        words, **case, expected=EITHER if key == "plan_top_p" or value == 0 or value is True else (REFUSED,)
    )


def damaged_settings(rng: np.random.Generator, folder: Path) -> Case:
    model = packaged(folder)
    path = model / pick(rng, (*PARTS, "processor/tokenizer.json", "processor/chat_template.jinja"))
    kind = pick(rng, ("damaged", "damaged", "deep", "large", "another", "missing", "pipe", "link"))
    if kind == "damaged":
        content, kind = damaged(rng, path.read_bytes())
    else:
        content = {"deep": b'{"a":' * 100_000, "large": b'{"x": "' + b"x" * 40_000_000 + b'"}', "another": b"[1]"}.get(
            kind, b""
        )
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/dev/zero")
    elif kind != "missing":
        path.write_bytes(content)
    return either_way(rng, f"{path.relative_to(model)} {kind}", path.name)


def damaged_header(rng: np.random.Generator, folder: Path) -> Case:
    """The head of a file of weights."""
    model = packaged(folder)
    path = model / pick(rng, WEIGHTS)
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    head, rest = content[8 : 8 + length], content[8 + length :]
    entries = json.loads(head)
    names = [name for name in entries if name != "__metadata__"]
    kind = pick(rng, ("length", "damaged", "dtype", "shape", "offsets", "missing", "more", "deep", "metadata", "cut"))
    name = pick(rng, names)
    if kind == "length":
        new = struct.pack("<Q", pick(rng, (0, 2**63, 2**64 - 1, length + 1, length - 1, 10**9))) + content[8:]
        return _written(rng, path, new, f"the length of its head is {new[:8]!r}")
    if kind == "damaged":
        head, kind = damaged(rng, head)
    elif kind == "cut":
        rest = rest[: int(rng.integers(len(rest)))]
    elif kind == "deep":
        entries = nested(500)
    elif kind == "dtype":
        entries[name]["dtype"] = pick(rng, ("F16", "I64", "X", 5, None, "F8_E4M3", "BOOL"))
    elif kind == "shape":
        entries[name]["shape"] = pick(rng, ([-1], [2**62, 4], [0], [], "x", [1.5], [10**30], None))
    elif kind == "offsets":
        entries[name]["data_offsets"] = pick(rng, ([0, 0], [-1, 5], [2**63, 2**63], [5], "x", [0, len(rest) + 1]))
    elif kind == "missing":
        del entries[name]
    elif kind == "more":
        entries["backbone.x"] = {"dtype": "F32", "shape": [0], "data_offsets": [len(rest), len(rest)]}
    elif kind == "metadata":
        entries["__metadata__"] = pick(rng, (5, [], {"format": "x"}, {"format": "pt", "x": "y" * 1_000_000}, {"a": 5}))
    if kind in ("dtype", "shape", "offsets", "missing", "more", "deep", "metadata"):
        head = json.dumps(entries).encode()
    what = f"its head: {kind}, {name}"
    # Numbers of 16 bits of the other kind are numbers, too, and nothing in the file says that they are wrong.
    is_read = kind == "metadata" or (kind == "dtype" and entries[name]["dtype"] == "F16")
    return _written(rng, path, struct.pack("<Q", len(head)) + head + rest, what, EITHER if is_read else ())


def _written(rng: np.random.Generator, path: Path, content: bytes, what: str, expected: tuple = ()) -> Case:
    replace_file(path, content)
    is_damage = "bytes flipped" in what or "zeros at" in what or "repeated" in what or "noise" in what
    expected = expected or (EITHER if is_damage else (REFUSED,))
    return either_way(rng, f"{path.parent.name}/{path.name}, {what}", path.name, expected=expected)


def bad_numbers(rng: np.random.Generator, folder: Path) -> Case:
    """Weights that are not finite, of other shapes or dtypes, too few or too many."""
    model = packaged(folder)
    path = model / pick(rng, WEIGHTS)
    tensors = _loaded(path)
    name = pick(rng, list(tensors))
    kind = pick(rng, ("nan", "inf", "shape", "less", "more", "integers", "empty"))
    value = tensors[name]
    if kind in ("nan", "inf"):
        new = value.astype(np.float32)
        new.reshape(-1)[int(rng.integers(new.size))] = float(kind)
        tensors[name] = new
    elif kind == "shape":
        tensors[name] = value.reshape(-1)[: max(1, value.size // 2)]
    elif kind == "less":
        del tensors[name]
    elif kind == "more":
        tensors[f"{name}_more"] = value
    elif kind == "integers":
        tensors[name] = value.astype(np.int8)
    else:
        tensors = {}
    replace_file(path, save(tensors, {"format": "pt"}))
    return either_way(rng, f"{path.parent.name}: {kind}, {name}", path.parent.name, expected=(REFUSED,))


def _loaded(path: Path) -> dict[str, np.ndarray]:
    """As `load_file`, of a file in bfloat16, of which numpy knows nothing."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    found = {}
    for name, entry in json.loads(content[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        data = content[8 + length + first : 8 + length + last]
        if entry["dtype"] == "BF16":
            wide = np.zeros((len(data) // 2, 2), np.uint16)
            wide[:, 1] = np.frombuffer(data, np.uint16)
            found[name] = wide.view(np.float32).reshape(entry["shape"])
        else:
            found[name] = np.frombuffer(data, np.float32).reshape(entry["shape"])
    return found


def other_weights(rng: np.random.Generator, folder: Path) -> Case:
    """Pickles, links, pipes and nothing in the place of weights."""
    model = packaged(folder)
    path = model / pick(rng, WEIGHTS)
    kind = pick(rng, ("pickle", "pickle beside", "pipe", "folder", "device", "empty", "noise", "link", "index"))
    names = [path.name]
    if kind in ("pickle beside", "index"):
        path.unlink()
        stem = (
            path.name.replace(".safetensors", ".bin")
            .replace("model.bin", "model.bin")
            .replace("model.bin", "model.bin")
        )
        names = [path.parent.name]
        if kind == "pickle beside":
            path.with_name(
                stem.replace("model.bin", "pytorch_model.bin") if "diffusion" not in stem else stem
            ).write_bytes(pickle.dumps(Payload()))
        else:
            shard = pick(rng, (f"../../../{OUTSIDE}/{SECRET}.txt", "/dev/zero", "none.safetensors", 5, None))
            index = {"metadata": {}, "weight_map": {"x": shard}}
            path.with_name(path.name + ".index.json").write_text(json.dumps(index))
    else:
        path.unlink()
        if kind == "pickle":
            path.write_bytes(pickle.dumps(Payload()))
        elif kind in ("pipe", "folder", "device"):
            put_no_file(path, kind)
        elif kind == "link":
            path.symlink_to("../chat_template.jinja")
        else:
            path.write_bytes(rng.bytes(500) if kind == "noise" else b"")
    return either_way(rng, f"{path.parent.name}/{path.name} is {kind}", *names, expected=(REFUSED,))


def code(rng: np.random.Generator, folder: Path) -> Case:
    """Names of code that is to be run."""
    model = packaged(folder)
    (model / "evil.py").write_text(f"open('../{OUTSIDE}/was_run', 'w')\nclass Evil: pass\n")
    evil = pick(rng, (["os", "system"], ["evil", "Evil"], ["builtins", "eval"], ["subprocess", "Popen"], ["x", None]))
    kind = pick(rng, ("part", "class", "auto_map", "processor", "kernel", "template", "loop", "tokenizer"))
    expected, names = (REFUSED,), ["evil", str(evil[1])]
    if kind == "part":
        part = pick(rng, ("decoder", "scheduler", "model", "processor"))
        change(model / "model_index.json", (part,), evil)
        names.append(part)
    elif kind == "class":
        change(model / "model_index.json", ("_class_name",), evil)
        expected = EITHER  # a class that is named is not asked for another one
    elif kind == "auto_map":
        mapping = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoProcessor": "evil.Evil"}
        change(model / pick(rng, ("model/config.json", "processor/processor_config.json")), ("auto_map",), mapping)
        expected = EITHER
    elif kind == "processor":
        key = pick(rng, ("processor_class", "image_processor_type"))
        change(model / "processor" / "processor_config.json", (key,), pick(rng, ("evil.Evil", "os.system", "x")))
        expected = EITHER
    elif kind == "tokenizer":
        change(model / "processor" / "tokenizer_config.json", ("tokenizer_class",), pick(rng, ("evil.Evil", "x", 5)))
        expected = EITHER
    elif kind == "kernel":
        key = pick(rng, (("_attn_implementation",), ("backbone_config", "text_config", "_attn_implementation")))
        change(model / "model" / "config.json", key, "someone/kernel")
        names.append("attn_implementation")
    else:
        attack = f"{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}{{% include '../{OUTSIDE}/{SECRET}.txt' %}}"
        loop = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
        power = "{{ 9 ** 9 ** 9 }}"
        product = "{{ 'x' * 9999999999 }}"
        text = pick(rng, (attack,) if kind == "template" else (loop, power, product))
        (model / "processor" / "chat_template.jinja").write_text(text)
        (model / "chat_template.jinja").write_text(text)
        names.append("template")
    return either_way(rng, f"{kind} {evil}", *names, expected=expected)


def other_parts(rng: np.random.Generator, folder: Path) -> Case:
    """A target encoder, a LoRA or a folder that is none."""
    kind = pick(rng, ("encoder", "lora", "no model", "export", "convert"))
    case: dict = {"expected": (REFUSED,), "names": ("model", "target_encoder", "lora")}
    model = packaged(folder)
    if kind == "encoder":
        path = model / "target_encoder" / pick(rng, ("config.json", "model.safetensors", "preprocessor_config.json"))
        content, what = damaged(rng, path.read_bytes())
        replace_file(path, content)
        by = "Blip3oReconstructionPipeline.from_pretrained('model')(picture, 'autoencoder')"
        return opened(f"target_encoder/{path.name} {what}", "target_encoder", by=by)
    if kind == "lora":
        lora = folder / "lora"
        lora.mkdir()
        name = "transformer.layers.0.feed_forward.linear_1"
        value = pick(rng, (0.1, float("nan"), float("inf")))
        tensors = {f"{name}.lora_A.weight": np.full((2, 128), value, np.float32)}
        tensors[f"{name}.lora_B.weight"] = np.zeros((pick(rng, (128, 5)), 2), np.float32)
        data = save(tensors)
        (lora / "adapter_model.safetensors").write_bytes(damaged(rng, data)[0] if rng.random() < 0.5 else data)
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["linear_1"]}
        config[pick(rng, list(config))] = hostile_value(rng)
        (lora / "adapter_config.json").write_text(json.dumps(config))
        words = "generate x -o out.png --steps 1 --attempts 1 --no-plan --lora lora"
        return command(words, what=f"a LoRA of {config!r:.200}", names=("lora",), expected=EITHER, writes=("out.png",))
    if kind == "no model":
        (folder / "empty").mkdir()
        name = pick(rng, ("empty", "none", "model/model", "model/decoder", "/", ".", "/dev/zero", "model/config.json"))
        words = f"describe in.png --model {name} --max-new-tokens 1"
        from .image_cases import encoded

        (folder / "in.png").write_bytes(encoded(rng, "PNG"))
        expected = (REFUSED, RIGHT) if name == "model/model" else (REFUSED,)
        return command(words, what=f"the model {name}", names=(name,), expected=expected)
    path = model / pick(rng, (*PARTS[:4], *WEIGHTS))
    content, what = damaged(rng, path.read_bytes()[: 10**5])
    replace_file(path, content)
    line = "export model out --dtype float16" if kind == "export" else "convert model out"
    expected = EITHER if kind == "export" else (REFUSED,)
    return command(line, **{**case, "what": f"{path.name} {what}", "expected": expected, "writes": ("out",)})


MAKERS: tuple[Maker, ...] = (
    bad_size,
    bad_setting,
    damaged_header,
    bad_numbers,
    damaged_settings,
    other_weights,
    code,
    bad_defaults,
    bad_size,
    bad_setting,
    other_parts,
)
