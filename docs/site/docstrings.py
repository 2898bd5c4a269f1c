"""Docstrings of the API reference: their links lead to its pages, and a missing one is an error.

An extension of Griffe, which reads the package for mkdocstrings and runs none of it.
"""

import re
from pathlib import Path

from griffe import Class, Extension, Module, Object
from mkdocs.plugins import get_plugin_logger

REFERENCE = Path(__file__).parents[1] / "api"
DIRECTIVE = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)
LINK = re.compile(r"\[`~?(?P<name>[\w.]+)`\]")
# A parameter, up to its description: the type in parentheses is shown as code, where Markdown has no meaning.
PARAMETER = re.compile(r"^(?P<name> +[\w, *]+)\((?P<type>.+?)\):(?= |$)", re.MULTILINE)
MARKUP = re.compile(r"\[`~?(?:\w+\.)*|`\]|[`*]")
# Methods that override those of a library, and do what its documentation says.
OVERRIDES = {
    *("get_input_embeddings", "set_input_embeddings", "get_output_embeddings", "set_output_embeddings"),
    *("get_text_config", "preprocess", "postprocess"),
    *("create_optimizer", "compute_loss", "training_step", "on_step_end", "on_save", "on_train_end"),
}

logger = get_plugin_logger("docstrings")


class Docstrings(Extension):
    """Prepares docstrings for Markdown, and warns of public names without one."""

    def on_package(self, *, pkg: Module, **_: object) -> None:
        """Called by Griffe when it has read all of a package."""
        if pkg.name != "blip3o_hf":
            return
        pages = sorted(REFERENCE.glob("*.md"))
        documented = [name for page in pages for name in DIRECTIVE.findall(page.read_text())]
        for name in documented:
            for path in undocumented(pkg[name.removeprefix("blip3o_hf.")]):
                logger.warning(f"{path} is public and has no docstring. Write one.")
        rewrite(pkg, {name.rpartition(".")[2]: name for name in documented})


def undocumented(thing: Object) -> list[str]:
    """The paths of this object and of its public methods that have no docstring, here or where they come from."""
    thing = thing.final_target if thing.is_alias else thing
    found = [] if thing.has_docstring else [thing.path]
    if isinstance(thing, Class):
        documented = {name for base in thing.mro() for name, member in base.members.items() if member.has_docstring}
        for name, member in thing.members.items():
            public = member.is_function and not name.startswith("_") and name not in OVERRIDES
            if public and not member.has_docstring and name not in documented:
                found.append(member.path)
    return found


def rewrite(thing: Object, targets: dict[str, str]) -> None:
    """Makes [`name`] a link to its entry in the reference, or plain code where it has none; in types, plain text."""

    def plain(match: re.Match) -> str:
        return f"{match['name']}({MARKUP.sub('', match['type'])}):"

    def link(match: re.Match) -> str:
        name = match["name"].rpartition(".")[2]
        return f"[`{name}`][{targets[name]}]" if name in targets else f"`{name}`"

    if thing.docstring is not None:
        thing.docstring.value = LINK.sub(link, PARAMETER.sub(plain, thing.docstring.value))
    for member in thing.members.values():
        if not member.is_alias:
            rewrite(member, targets)
