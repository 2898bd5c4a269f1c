"""Chat templates from elsewhere: small programs in Jinja, tried once within limits before they get what users say."""

import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

from jinja2 import Environment, TemplateError

try:
    import resource
except ImportError:  # on Windows
    resource = None

MAX_CHARACTERS = 200_000
"""Ten times as many as the longest template of a published model."""
MAX_NUMBER = 1_000_000
_MAX_LINES = 1_000_000
_MAX_GROWTH = 500 * 2**20
"""Bytes of memory that a trial may take."""
_SAID = "a red circle"
_FILE = "<template>"
"""Where Python says that the code of a template is from."""
_LIMITS = (TemplateError, MemoryError, OverflowError, RecursionError)
_BREAKS = (*_LIMITS, TypeError, AttributeError, LookupError, ArithmeticError)
"""What a template raises: on any messages of a chat, and on those of a trial, which are what they should be."""


def check_template(template: str) -> None:
    """
    Refuse what could take much time and memory in a single operation, which nothing could interrupt.

    Raises:
        ValueError: when a template is no Jinja, longer than `MAX_CHARACTERS`, or holds a power, a text times a number,
            or a number above `MAX_NUMBER`.
    """
    if len(template) > MAX_CHARACTERS:
        raise ValueError(_refusal(f"it has {len(template):,} characters, and at most {MAX_CHARACTERS:,} are read"))
    before = ("", "")
    try:
        tokens = [(kind, text) for _, kind, text in Environment().lex(template) if kind != "whitespace"]
    except TemplateError as error:
        raise ValueError(_refusal(_one_line(error))) from error
    for number, (kind, text) in enumerate(tokens):
        after = tokens[number + 1][0] if number + 1 < len(tokens) else ""
        is_power = text == "**" and before[1] not in ("(", ",")  # where it stands for named arguments
        if kind == "integer" and int(text.replace("_", ""), 0) > MAX_NUMBER:
            raise ValueError(_refusal(f"it holds the number {text:.20}, and at most {MAX_NUMBER:,} is read"))
        if kind == "operator" and (is_power or (text == "*" and "string" in (before[0], after))):
            raise ValueError(_refusal(f"it holds {before[1]:.20} {text} {tokens[number + 1][1]:.20}"))
        before = kind, text


def try_template(template: str, apply: Callable[[list], Any]) -> None:
    """
    Check a template, and let it make a text of one message, which is a string, or for some templates a list.

    Args:
        template: in Jinja.
        apply: makes a text of messages.

    Raises:
        ValueError: when it does not, or leaves out what is said.
    """
    check_template(template)
    error = ValueError(_refusal("it leaves out what is said"))
    for content in (_SAID, [{"type": "text", "text": _SAID}]):
        try:
            if _SAID in rendered(partial(apply, [{"role": "user", "content": content}]), is_trial=True):
                return
        except ValueError as refusal:
            error = refusal
    raise error


def rendered(render: Callable[[], Any], is_trial: bool = False) -> Any:
    """
    What a template makes of messages.

    Args:
        render: makes it.
        is_trial: whether to stop it after a million lines. A debugger that watches the program takes that place.

    Raises:
        ValueError: when it makes nothing.
    """
    is_watched, lines, before = is_trial and sys.gettrace() is None, 0, _peak()
    breaks = _BREAKS if is_trial else _LIMITS

    def count(frame: FrameType, event: str, argument: Any) -> Callable | None:
        nonlocal lines
        if frame.f_code.co_filename != _FILE:
            return None
        lines += 1
        if lines > _MAX_LINES:
            raise RecursionError(f"it runs for more than {_MAX_LINES:,} lines")
        if (lines < 1000 or lines % 1000 == 0) and _peak() - before > _MAX_GROWTH:
            raise MemoryError(f"it takes more than {_MAX_GROWTH >> 20} MB")
        return count

    try:
        if is_watched:
            sys.settrace(count)
        return render()
    except breaks as error:
        way_out = "" if is_trial else "Change the messages, or u"
        raise ValueError(_refusal(_one_line(error) or "it takes more memory than there is", way_out)) from error
    finally:
        if is_watched:
            sys.settrace(None)


def _peak() -> int:
    """The most memory that this process had, in bytes; 0 where the system does not tell."""
    if resource is None:
        return 0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _refusal(reason: str, way_out: str = "") -> str:
    return (
        f"A chat template must make a text of messages. That of this model (chat_template.jinja) does not: "
        f"{reason.rstrip('.'):.200}. {way_out or 'U'}se the one that was saved with the model."
    )


__all__ = ["MAX_CHARACTERS", "check_template", "rendered", "try_template"]
