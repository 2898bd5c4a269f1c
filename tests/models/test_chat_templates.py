"""Chat templates from elsewhere are tried within limits; what is no template of messages is refused at once."""

import sys
import time

import pytest

from blip3o_hf import Blip3oProcessor, packaged_model_path
from blip3o_hf.models.chat_templates import MAX_CHARACTERS

PLAIN = "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}"
LISTED = "{% for message in messages %}{{ message.role }}: {{ message.content[0].text }}{% endfor %}"


@pytest.fixture(scope="module")
def saved():
    return Blip3oProcessor.from_pretrained(packaged_model_path())


def with_template(saved, template):
    return Blip3oProcessor(saved.image_processor, saved.tokenizer, chat_template=template)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{", "unexpected 'end of template'"),
        ("{% include 'x' %}", "no loader for this environment"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ messages[7].content }}", "has no element 7"),
        ("{{ raise_exception('not today') }}", "not today"),
        ("{{ 9 ** 9 ** 9 }}", r"it holds 9 \*\* 9"),
        ("{{ 'x' * 9999999999 }}", r"it holds 'x' \* 9999999999"),
        ("{% for a in range(9) %}{{ 9 * 'x' }}{% endfor %}", r"it holds 9 \* 'x'"),
        ("{% set a = 'x' %}{{ a * 10000000000000000 }}", "it holds the number 10000000000000000, and at most"),
        ("{{ 'a'|center(1500000000) }}", "it holds the number 1500000000, and at most 1,000,000 is read"),
        (
            "{% set n = namespace(s='x' ~ messages) %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
            "it takes more than 500 MB",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth"),
        ("a" * (MAX_CHARACTERS + 1), "it has 200,001 characters, and at most 200,000 are read"),
        ("a", "it leaves out what is said"),
        ("{% for message in messages %}{{ message.role }}{% endfor %}", "it leaves out what is said"),
    ],
)
def test_what_makes_no_text_of_messages_is_refused(saved, template, reason):
    with pytest.raises(
        ValueError, match=rf"must make a text of messages\. That of this model .* does not: .*{reason}"
    ):
        with_template(saved, template)


def test_a_template_without_an_end_is_stopped(saved):
    template = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}" + PLAIN
    start = time.process_time()
    with pytest.raises(ValueError, match="it runs for more than 1,000,000 lines"):
        with_template(saved, template)
    assert time.process_time() - start < 15
    assert sys.gettrace() is None


@pytest.mark.parametrize("template", [PLAIN, LISTED, "**bold** 2 * 3 {# 2 ** 3 #}" + PLAIN])
def test_templates_may_take_strings_or_lists_and_hold_any_signs(saved, template):
    content = "a circle" if template != LISTED else [{"type": "text", "text": "a circle"}]
    text = with_template(saved, template).apply_chat_template([{"role": "user", "content": content}])
    assert text.endswith("user: a circle\n" if template != LISTED else "user: a circle")


def test_a_debugger_keeps_its_place(saved):
    def watch(frame, event, argument):
        return None

    sys.settrace(watch)
    try:
        with_template(saved, PLAIN)
        assert sys.gettrace() is watch
    finally:
        sys.settrace(None)


def test_messages_that_a_template_does_not_take_say_so(saved):
    template = "{% if messages|length > 1 %}{{ raise_exception('one at a time.') }}{% endif %}" + PLAIN
    processor = with_template(saved, template)
    message = {"role": "user", "content": "a circle"}
    assert processor.apply_chat_template([message])
    with pytest.raises(
        ValueError, match=r"does not: one at a time\. Change the messages, or use the one that was saved"
    ):
        processor.apply_chat_template([message, message])


@pytest.mark.parametrize("content", [b"\xff{{ x }}", (b"{{ 9 ** 9 }}")])
def test_the_folder_is_named(saved, tmp_path, content):
    saved.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{tmp_path} must be as `save_pretrained` wrote it\. It cannot be opened: "):
        Blip3oProcessor.from_pretrained(tmp_path)
