"""A card's text by its headings and code blocks."""

import re
from collections.abc import Iterator


def _lines(text: str) -> Iterator[tuple[str, bool]]:
    """Every line, and whether it belongs to a fenced block."""
    is_fenced = False
    for line in text.splitlines(keepends=True):
        is_fence = line.lstrip().startswith("```")
        yield line, is_fenced or is_fence
        is_fenced ^= is_fence


def sections(text: str, level: int) -> list[tuple[str, str]]:
    """
    Heading and whole text, heading included, of every section of a level.

    What stands before the first heading of that level comes first, with an empty heading. A higher heading ends a
    section. Together the texts are `text`.

    Example:
        >>> sections("a\\n## Use\\nb\\n", 2)
        [('', 'a\\n'), ('Use', '## Use\\nb\\n')]
    """
    found = [("", "")]
    for line, is_fenced in _lines(text):
        heading = None if is_fenced else re.fullmatch(r"(#{1,6}) +(.*?)\s*", line)
        if heading and len(heading[1]) <= level:
            found.append((heading[2] if len(heading[1]) == level else "", ""))
        found[-1] = (found[-1][0], found[-1][1] + line)
    return found


def code_blocks(text: str, language: str) -> list[str]:
    """The contents of all fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```\s*$", text, re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    """The text without fenced blocks, where `#` and `[...](...)` mean something else."""
    return "".join(line for line, is_fenced in _lines(text) if not is_fenced)
