"""Each field of a request is checked, and its error names it, what it must be, and what came."""

import json
import re

import pytest

from blip3o_hf.serving.errors import ApiError, wrong
from blip3o_hf.serving.fields import Fields, parsed

NUMBER = "a number from 0 to 2"
WHOLE = "a whole number from 1 to 10"


@pytest.mark.parametrize("body", [b'{"a": 1, "b": null}', b'\xef\xbb\xbf{"a": 1}', '{"a": 1}'.encode("utf-16")])
def test_a_body_is_an_object(body):
    assert parsed(body)["a"] == 1


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "The body must be JSON. It is not: Expecting value"),
        (b"{", "Check what is sent."),
        (b'{"a": NaN}', "NaN is no JSON"),
        (b'{"a": -Infinity}', "-Infinity is no JSON"),
        (b'{"a": "\xff"}', "can't decode byte 0xff"),
        (b'{"a": ' + b"9" * 5000 + b"}", "It is not: Exceeds the limit"),
        (b"[" * 100_000, "It is not: maximum recursion depth exceeded"),
        (b"[1, 2]", "The body must be a JSON object. Got [1, 2]. Send fields by their names."),
        (b'"text"', "Got 'text'."),
        (b"null", "Got None."),
    ],
)
def test_other_bodies_are_refused(body, text):
    with pytest.raises(ApiError) as caught:
        parsed(body)
    assert caught.value.status == 400 and text in caught.value.message


def refused(read, value, text, are_texts=False):
    """The error of a field `x` in its three sentences."""
    with pytest.raises(ApiError, match=re.escape(text)) as caught:
        read(Fields({"x": value}, are_texts))
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "x", "invalid_value")
    assert caught.value.message.startswith("`x` must be ")


@pytest.mark.parametrize("value", [1, True, [], {}, ["a"]])
def test_a_text_is_a_text(value):
    refused(lambda fields: fields.text("x", 5), value, f"`x` must be a text. Got {value!r}. Say something.")


@pytest.mark.parametrize("value", ["", " \n", None])
def test_a_text_that_must_be_there_says_something(value):
    refused(lambda fields: fields.text("x", 5, required=True), value, "`x` must be a text. Got ")
    assert Fields({"x": value}).text("x", 5) == value


def test_a_long_text_is_refused_and_not_repeated():
    text = "`x` must be at most 5 letters long. It has 1,000. Make it shorter."
    refused(lambda fields: fields.text("x", 5), "secret" * 166 + "four", text)
    assert Fields({"x": "12345"}).text("x", 5) == "12345"


def test_half_a_character_is_refused():
    text = r"`x` must be Unicode text. Got 'a\ud800', with half a character. Read it as UTF-8."
    refused(lambda fields: fields.text("x", 5), "a\ud800", text)


@pytest.mark.parametrize("value", ["1", 1.5, 0, 11, True, 1e300, 10**4000, [1], {}])
def test_a_whole_number_is_one(value):
    refused(lambda fields: fields.integer("x", 1, 10), value, f"`x` must be {WHOLE}. Got ")


@pytest.mark.parametrize("value", ["--5", "", "-", "1.5", "1e3", "9" * 30, " 5", "0x1"])
def test_a_whole_number_of_a_form_is_one(value):
    refused(lambda fields: fields.integer("x", 1, 10), value, f"`x` must be {WHOLE}. Got {value!r}.", are_texts=True)


def test_whole_numbers_are_read():
    assert [Fields({"x": value}).integer("x", -3, 10) for value in (3, 3.0, -3)] == [3, 3, -3]
    assert [Fields({"x": value}, are_texts=True).integer("x", -3, 10) for value in ("3", "-3", "007")] == [3, -3, 7]
    assert Fields({}).integer("x", 1, 10) is None and Fields({"x": None}).integer("x", 1, 10, 4) == 4


@pytest.mark.parametrize("value", ["1", True, -0.1, 2.1, 10**400, -(10**400), float("inf"), [], {}])
def test_a_number_is_one(value):
    refused(lambda fields: fields.number("x", 0, 2), value, f"`x` must be {NUMBER}. Got ")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "", "one", "1,5", "1e999"])
def test_a_number_of_a_form_is_one(value):
    refused(lambda fields: fields.number("x", 0, 2), value, f"`x` must be {NUMBER}. Got ", are_texts=True)


def test_numbers_are_read():
    assert [Fields({"x": value}).number("x", 0, 2) for value in (0, 1.5, 2)] == [0.0, 1.5, 2.0]
    assert Fields({"x": "1.5"}, are_texts=True).number("x", 0, 2) == 1.5
    assert Fields({}).number("x", 0, 2) is None


@pytest.mark.parametrize("value", ["true", 1, 0, [], "yes"])
def test_truth_is_true_or_false(value):
    refused(lambda fields: fields.truth("x"), value, f"`x` must be true or false. Got {value!r}. Choose one.")


def test_truth_of_a_form_is_read():
    read = [Fields({"x": text}, are_texts=True).truth("x") for text in ("true", "True", "1", "false", "0")]
    assert read == [True, True, True, False, False]
    refused(lambda fields: fields.truth("x"), "yes", "`x` must be true or false. Got 'yes'.", are_texts=True)
    assert [Fields({"x": value}).truth("x") for value in (True, False, None)] == [True, False, None]


@pytest.mark.parametrize("value", ["c", 1, ["a"], {"a": 1}, "A"])
def test_a_choice_is_one_of_the_known(value):
    text = f"`x` must be one of a, b. Got {value!r}. Choose one, or leave it out."
    refused(lambda fields: fields.choice("x", ("a", "b")), value, text)
    assert Fields({}).choice("x", ("a", "b"), "a") == "a" and Fields({"x": "b"}).choice("x", ("a", "b")) == "b"


@pytest.mark.parametrize("value", ["a", [1], 1, True])
def test_what_cannot_be_used_is_refused_with_the_reason(value):
    with pytest.raises(ApiError, match=r"^`x` cannot be used here: no reason\. Leave it out\.$") as caught:
        Fields({"x": value}).refused("x", "no reason")
    assert (caught.value.param, caught.value.code) == ("x", "unsupported_parameter")


@pytest.mark.parametrize("value", [None, [], {}, False])
def test_what_asks_for_nothing_is_no_use(value):
    fields = Fields({"x": value})
    fields.refused("x", "no reason")
    fields.finish()


def test_unknown_fields_are_refused_and_the_known_ones_named():
    fields = Fields({"a": 1, "b": 2, "nothing": None, "z" * 100: 3})
    fields.ignored("a", "c")
    with pytest.raises(ApiError, match=r"Got 'b', 'z+'\. Known are a, c\.$") as caught:
        fields.finish()
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "b", "unknown_parameter")
    fields.ignored("b", "z" * 100)
    fields.finish()


def test_an_error_can_be_sent_whatever_it_names():
    body = ApiError(400, "Got \ud800.", "\udfff").body()
    assert json.dumps(body, ensure_ascii=False).encode()
    assert body["error"]["message"] == "Got \\ud800." and body["error"]["param"] == "\\udfff"
    assert wrong("x", "short", "a" * 1000, "Choose one.").message == f"`x` must be short. Got '{'a' * 79}. Choose one."
