"""Values of recipes and overrides, read by the type of their key: `1e-4` is a number, and a text needs no quotes."""

import math
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields, is_dataclass
from enum import Enum
from inspect import signature
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from yaml.constructor import ConstructorError

from ..checks import unknown_name
from ..reading import read_bytes
from ..yaml_text import parse_yaml

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a mapping",
}
_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_RANGES: dict[str, tuple[int, int | None]] = {
    "seed": (0, None),
    "training.seed": (0, 2**32 - 1),
    "length": (1, None),
    "min_items": (0, None),
    "shuffle_buffer": (1, None),
    "max_bad_share": (0, 1),
    "training.max_steps": (1, None),
    "learning_rate": (0, None),
    "muon_learning_rate": (0, None),
    "weight_decay": (0, None),
    "max_skipped_steps": (0, None),
    "max_grad_norm": (0, None),
    "warmup_steps": (0, None),
    "learning_rates": (0, None),
    "per_device_train_batch_size": (1, 2**20),
    "per_device_eval_batch_size": (1, 2**20),
    "gradient_accumulation_steps": (1, 2**20),
    "global_batch_size": (1, 2**30),
    "evaluation_steps": (0, None),
    "dataloader_num_workers": (0, 1024),
    "max_length": (1, None),
    "max_input_pixels": (1, 10**10),
    "max_pixels": (1, 10**10),
    "min_size": (1, None),
    "num_queries": (1, None),
    "feature_size": (1, None),
}
"""What a number must be at least, and at most, by its key, the last part of it, or that of the mapping it is in."""
_POSITIVE = ("save_steps", "logging_steps", "eval_steps", "num_train_epochs")
"""What a number must be more than 0 for: steps, or a share of all."""


class RecipeLoader(yaml.SafeLoader):
    """
    PyYAML's loader reads `1e-4` as a text, because it has no dot, and of a key that is there twice the last value.
    This one reads it as a number, as YAML 1.2 does, and refuses such a key.
    """

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"found the key {key.value!r} twice"
                raise ConstructorError("while constructing a mapping", node.start_mark, problem, key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


class RecipeDumper(yaml.SafeDumper):
    """Puts a text in quotes that [`RecipeLoader`] would take for a number."""


for _kind in (RecipeLoader, RecipeDumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )


def read_yaml(path: Path) -> Any:
    """
    The content of a YAML file in UTF-8 or UTF-16, whatever the locale, with a byte order mark or without.

    Raises:
        ValueError: when it is too large, or nested too deep.
        yaml.YAMLError: when it is no YAML, or a key is there twice.
    """
    return parse_yaml(read_bytes(path), RecipeLoader, takes_references=True)


def write_yaml(content: Any, path: Path) -> None:
    """Write a YAML file in UTF-8 that `read_yaml` reads as it was, with keys in their order."""
    path.write_text(yaml.dump(content, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True), encoding="utf-8")


def read_value(text: str, hint: Any, key: str) -> Any:
    """
    A value as it stands behind `key=` on a command line.

    Args:
        text: what stands there.
        hint: the type of the key, or `None` where it is not known: then the value is YAML.
        key: for errors.

    Raises:
        ValueError: when it is not of that type.
    """
    kinds = _kinds(hint)
    is_structure = text.lstrip().startswith(("[", "{")) and kinds & {list, dict}
    is_text = str in kinds and not kinds & {bool, int, float}
    if is_text and not is_structure and text.strip() not in ("", "null", "~") and not text.startswith(("'", '"')):
        return typed(text, hint, key)
    try:
        value = parse_yaml(text, RecipeLoader)
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"The value of `{key}` must be YAML. Got {text!r} ({reason}). Put texts with braces, colons or commas in "
            f"quotes: {key}='\"...\"'."
        ) from error
    if value is None and not _allows_none(hint):
        raise ValueError(_not_of_type(text, kinds, key))
    return typed(value, hint, key)


def typed(value: Any, hint: Any, key: str) -> Any:
    """
    A value that YAML gave, as the type of its key; so are the values in a list or a mapping.

    Args:
        value: what was read.
        hint: the type, or `None` where it is not known: then the value stays as it is.
        key: for errors.

    Raises:
        ValueError: when it is not of that type, or not in the range of its key.
    """
    kinds = _kinds(hint)
    if not kinds or object in kinds or (value is None and _allows_none(hint)):
        return value
    value = _of_kind(value, kinds, key)
    _check_choice(value, hint, key)
    _check_range(value, key)
    inside = _types_inside(hint, type(value))
    if isinstance(value, list):
        return [typed(each, inside, f"{key}.{index}") for index, each in enumerate(value)]
    if isinstance(value, dict):
        return {name: typed(each, inside, f"{key}.{name}") for name, each in value.items()}
    return value


def _of_kind(value: Any, kinds: set[type], key: str) -> Any:
    """A value as one of the plain types that its key allows."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(_not_of_type(value, kinds, key))
    if type(value) in kinds:
        return value
    if float in kinds and _is_number(value):
        return value if isinstance(value, int) else float(value)
    if int in kinds and _is_number(value) and float(value).is_integer():
        return int(float(value))
    if bool in kinds and str(value).lower() in _TRUTH:
        return _TRUTH[str(value).lower()]
    if str in kinds and isinstance(value, bool):  # YAML reads `no` as false
        return "yes" if value else "no"
    if str in kinds and isinstance(value, int | float):
        return str(value)
    if str in kinds and isinstance(value, Enum):
        return value
    if list in kinds and isinstance(value, tuple):
        return list(value)
    raise ValueError(_not_of_type(value, kinds, key))


def _not_of_type(value: Any, kinds: set[type], key: str) -> str:
    wanted = " or ".join(_WORDS[kind] for kind in _WORDS if kind in kinds)
    return f"`{key}` must be {wanted}. Got {value!r}. Example: {key}={_example(kinds)}."


def _check_choice(value: Any, hint: Any, key: str) -> None:
    """Raise a `ValueError` for a word that is none of those a setting of transformers knows."""
    kinds: list[Any] = [_plain(member) for member in _members(hint)]
    choices = [word.value for kind in kinds if issubclass(kind, Enum) for word in kind]
    if choices and isinstance(value, str) and not isinstance(value, Enum) and value not in choices:
        raise ValueError(unknown_name(f"value of `{key}`", value, choices))


def _check_range(value: Any, key: str) -> None:
    """Raise a `ValueError` for a number that its key cannot have."""
    if key.rpartition(".")[2] in _POSITIVE and isinstance(value, int | float) and value <= 0:
        raise ValueError(f"`{key}` must be more than 0. Got {value!r}. Leave it out for the default.")
    *_, section, name = f".{key}".split(".")
    least, most = _RANGES.get(key) or _RANGES.get(name) or _RANGES.get(section) or (None, None)
    if not isinstance(value, int | float) or least is None:
        return
    if value < least or (most is not None and value > most):
        wanted = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"`{key}` must be {wanted}. Got {value!r}. Leave it out for the default.")


def typed_values(content: Mapping[str, Any], hints: Mapping[str, Any], section: str) -> dict[str, Any]:
    """A section of a recipe whose values are those of their types; `section` is for errors."""
    return {name: typed(value, hints.get(name), f"{section}.{name}") for name, value in content.items()}


def hints_of(source: Callable[..., Any] | type, *names: str) -> dict[str, Any]:
    """
    The types of the settings that a function or a dataclass takes; what is `None` by default may be `None`.

    Args:
        source: the function, or the class of settings.
        names: of the settings that are wanted; all by default.
    """
    if is_dataclass(source):  # configs of libraries name types that only their type checker knows
        hints: dict[str, Any] = {field.name: _with_choices(field) for field in fields(source)}
        defaults = {field.name: field.default for field in fields(source)}
    else:
        hints = get_type_hints(source)
        defaults = {name: parameter.default for name, parameter in signature(source).parameters.items()}
    known = {name: hint for name, hint in hints.items() if not isinstance(hint, str)}
    return {
        name: hint | None if defaults.get(name, ...) is None else hint
        for name, hint in known.items()
        if not names or name in names
    }


def _with_choices(field: Field) -> Any:
    """The type of a field, with the words it may be where it names them, as those of transformers do."""
    choices = field.metadata.get("choices")
    kind: Any = field.type
    return Enum(field.name, {str(word): word for word in choices}) | kind if choices else kind


def _members(hint: Any) -> tuple[Any, ...]:
    """The types that a hint allows."""
    if hint is None:
        return ()
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _plain(member: Any) -> type:
    """A type without the types of what is in it; `object` where it is none."""
    member = get_origin(member) or member
    return list if member is Sequence else member if isinstance(member, type) else object


def _kinds(hint: Any) -> set[type]:
    """The plain types that a hint allows; `object` among them where it allows others, too."""
    kinds = {str if issubclass(_plain(member), Enum) else _plain(member) for member in _members(hint)}
    return {kind if kind in _WORDS else object for kind in kinds - {type(None)}}


def _allows_none(hint: Any) -> bool:
    return hint is None or type(None) in _members(hint)


def _types_inside(hint: Any, kind: type) -> Any:
    """The type of the values in a list or a mapping; `None` where the hint does not say it."""
    arguments = next((get_args(member) for member in _members(hint) if _plain(member) is kind), ())
    return arguments[-1] if arguments and arguments[-1] is not Any else None


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    try:
        return float(value) == float(value)  # not NaN
    except (TypeError, ValueError):
        return False


def _example(kinds: set[type]) -> str:
    examples = {float: "1e-4", int: "8", bool: "true", list: "[a, b]", dict: "{a: 1}", str: "text"}
    return next(example for kind, example in examples.items() if kind in kinds)
