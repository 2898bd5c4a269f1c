"""YAML from elsewhere, read within limits."""

from typing import Any

import yaml

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 64
"""How deep YAML may be nested: PyYAML takes a part of the stack for each level."""
SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Much faster where libyaml is there."""


def parse_yaml(text: str | bytes, loader: Any = None, takes_references: bool = False) -> Any:
    """
    What YAML holds.

    Args:
        text: at most `MAX_CHARACTERS`.
        loader: a class of PyYAML; the safe one by default, which makes plain values alone.
        takes_references: whether anchors may be used, by which a short text can stand for a very long one.

    Raises:
        ValueError: when it is larger, nested deeper than `MAX_DEPTH`, or uses anchors that are not taken.
        yaml.YAMLError: when it is no YAML.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"YAML is read up to {MAX_CHARACTERS:,} characters. This has {len(text):,}. Make it smaller.")
    depth = 0
    for event in yaml.parse(text, SAFE_LOADER):
        if isinstance(event, yaml.AliasEvent) and not takes_references:
            raise ValueError(f"YAML is read without references (`*{event.anchor}`). Write the value out in its place.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"YAML is read up to {MAX_DEPTH} levels. This is nested deeper. Make it flatter.")
    return yaml.load(text, loader or SAFE_LOADER)
