"""Values of recipes and overrides, read by the type of their key: `1e-4` is a number, and a text needs no quotes."""

import re
import types
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a mapping",
}
_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class RecipeLoader(yaml.SafeLoader):
    """
    PyYAML's loader reads `1e-4` as a text, because it has no dot; this one reads it as a number, as YAML 1.2 does.
    """


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
        yaml.YAMLError: when it is no YAML.
    """
    return yaml.load(path.read_bytes(), RecipeLoader)


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
        return text
    try:
        value = yaml.load(text, RecipeLoader)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"The value of `{key}` must be YAML. Got {text!r} ({reason}). Put texts with braces, colons or commas in "
            f"quotes: {key}='\"...\"'."
        ) from error
    return typed(value, hint, key)


def typed(value: Any, hint: Any, key: str) -> Any:
    """
    A value that YAML gave, as the type of its key.

    Args:
        value: what was read; `None` stays.
        hint: the type, or `None` where it is not known: then the value stays as it is.
        key: for errors.

    Raises:
        ValueError: when it is not of that type.
    """
    kinds = _kinds(hint)
    if value is None or not kinds or object in kinds or type(value) in kinds:
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
    wanted = " or ".join(_WORDS[kind] for kind in _WORDS if kind in kinds)
    raise ValueError(f"`{key}` must be {wanted}. Got {value!r}. Example: {key}={_example(kinds)}.")


def typed_values(content: Mapping[str, Any], hints: Mapping[str, Any], section: str) -> dict[str, Any]:
    """A section of a recipe whose values are those of their types; `section` is for errors."""
    return {name: typed(value, hints.get(name), f"{section}.{name}") for name, value in content.items()}


def _kinds(hint: Any) -> set[type]:
    """The plain types that a hint allows; `object` among them where it allows others, too."""
    if hint is None:
        return set()
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    kinds = set()
    for member in members:
        member = get_origin(member) or member
        if isinstance(member, type) and issubclass(member, Enum):
            member = str
        if member is not type(None):
            kinds.add(member if member in _WORDS else object)
    return kinds


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _example(kinds: set[type]) -> str:
    examples = {float: "1e-4", int: "8", bool: "true", list: "[a, b]", dict: "{a: 1}", str: "text"}
    return next(example for kind, example in examples.items() if kind in kinds)
