"""Words that are said while they are written, conversations that are known again, and the fields of a turn."""

import asyncio

import pytest
import torch

from blip3o_hf.serving.drawing import Stop
from blip3o_hf.serving.errors import ApiError
from blip3o_hf.serving.fields import Fields
from blip3o_hf.serving.pictures import Encoding, PictureBook
from blip3o_hf.serving.talking import Conversations, Turn, TurnJob, Words

SENTENCE = "there are two red circles to the left of the blue square."


# Words


def said(tokenizer, text, stops, ends=True):
    """The parts that are said of a text whose tokens come one by one."""
    parts = []
    words = Words(tokenizer, parts.append, stops)
    words.put(torch.tensor([[1, 2, 3]]))
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        words.put(torch.tensor([token]))
    if ends:
        words.end()
    return parts, words


def test_words_come_in_parts_that_make_the_whole(tiny):
    parts, words = said(tiny.processor.tokenizer, SENTENCE, ())
    assert "".join(parts) == SENTENCE and len(parts) > 5
    assert (words.num_read, words.num_written) == (3, len(tiny.processor.tokenizer(SENTENCE)["input_ids"]))


@pytest.mark.parametrize("length", [1, 2, 5, 12, 40])
def test_no_letter_of_a_stop_is_said_wherever_tokens_are_split(length, tiny):
    for start in range(len(SENTENCE) - length + 1):
        stop = SENTENCE[start : start + length]
        expected = SENTENCE[: SENTENCE.index(stop)]
        for stops in ((stop,), ("nothing like it, and longer than that", stop)):
            parts, _ = said(tiny.processor.tokenizer, SENTENCE, stops)
            assert "".join(parts) == expected
            assert all(expected.startswith("".join(parts[: i + 1])) for i in range(len(parts)))


def test_the_first_of_several_stops_counts_and_half_a_stop_does_not(tiny):
    tokenizer = tiny.processor.tokenizer
    assert "".join(said(tokenizer, SENTENCE, ("blue", "red"))[0]) == "there are two "
    assert "".join(said(tokenizer, SENTENCE, ("blue triangle", "square!"))[0]) == SENTENCE
    assert "".join(said(tokenizer, SENTENCE, ("square!",), ends=False)[0]) in SENTENCE[: -len("square!") + 1]


def test_special_tokens_are_counted_and_not_said(tiny):
    parts, words = said(tiny.processor.tokenizer, "red<|im_end|>", ())
    assert "".join(parts) == "red" and words.last_token == tiny.processor.tokenizer.eos_token_id


# Conversations


def user(text, *images):
    shown = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*shown, {"type": "text", "text": text}] if images else text}


def assistant(text=None, image=None):
    content = text if image is None else [{"type": "image", "image": image}]
    return {"role": "assistant", "content": content}


@pytest.fixture
def conversations(tiny):
    return Conversations(tiny, PictureBook(False, 100), size=3)


def spoken(conversations, *messages):
    """A conversation of these messages, and what the model added."""
    chat = conversations.find(messages[:-2])
    chat.messages = list(messages)
    return chat


A, B, C = ([user(name), assistant("1"), user("and?"), assistant("2")] for name in "abc")
SYSTEM = {"role": "system", "content": "be brief"}


def test_a_conversation_goes_on_where_it_was(conversations):
    first, second = spoken(conversations, *A), spoken(conversations, *B)
    assert conversations.find(A) is first and conversations.find(B) is second
    longer = spoken(conversations, *A, user("more"), assistant("3"))
    assert longer is first and conversations.find([*A, user("more"), assistant("3")]) is first


def test_the_longest_beginning_is_taken(conversations):
    short, long = spoken(conversations, *A[:2]), spoken(conversations, *B)
    other = spoken(conversations, *A[:2], user("else"), assistant("4"))
    assert other is short
    short = spoken(conversations, *C[:2])
    assert conversations.find(B[:2]) is long  # its last turn is said again
    assert conversations.find([*C[:2], user("else"), assistant("5")]) is short


def test_what_was_said_otherwise_is_another_conversation(conversations):
    first = spoken(conversations, *A)
    for messages in ([user("a "), *A[1:]], [assistant("a"), *A[1:]], [SYSTEM, *A], []):
        chat = conversations.find(messages)
        assert chat is not first and chat.messages == messages


def test_conversations_of_one_system_message_do_not_take_each_others_place(conversations):
    chats = [spoken(conversations, SYSTEM, *messages) for messages in (A, B, C)]
    assert len(set(map(id, chats))) == 3
    assert [conversations.find([SYSTEM, *messages]) for messages in (A, B, C)] == chats


def test_the_one_that_was_not_used_for_longest_makes_room(conversations):
    first, second, third = (spoken(conversations, *messages) for messages in (A, B, C))
    assert conversations.find(A) is first
    new = spoken(conversations, user("new"), assistant("6"))
    assert [id(chat) for chat in conversations._chats] == [id(new), id(first), id(third)]
    assert conversations.find(B) is not second


def test_pictures_are_compared_as_objects(conversations, make_image):
    image = make_image()
    chat = spoken(conversations, user("what?", image), assistant("red"))
    assert conversations.find([user("what?", image), assistant("red")]) is chat
    assert conversations.find([user("what?", image.copy()), assistant("red")]) is not chat


def test_a_drawn_picture_stands_for_all_that_the_model_read_to_draw_it(conversations, make_image):
    image = make_image()
    request = {**user("Draw this: one red circle"), "prompt": "a red circle", "plan": "one red circle"}
    chat = spoken(conversations, request, assistant(image=image))
    known = conversations.pictures.written(image, Encoding())
    back = asyncio.run(conversations.pictures.open(known, "url"))
    found = conversations.find([user("a red circle"), assistant(image=back)])
    assert found is chat and found.messages[0] is request
    other = conversations.find([user("a blue circle"), assistant(image=back)])  # nobody asked this for it
    assert other is not chat and other.messages[0] == user("a blue circle")


# Fields of a turn


def turn(pipe, **fields):
    given = Fields({"messages": [user("hi")], **fields})
    read = asyncio.run(Turn.read(given, pipe, PictureBook(False, 100)))
    given.finish()
    return read


def fails(pipe, text, param, **fields):
    with pytest.raises(ApiError) as caught:
        turn(pipe, **fields)
    assert text in caught.value.message and caught.value.status == 400 and caught.value.param == param


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, 0.0),
        ({"temperature": 0.3}, 0.3),
        ({"top_p": 0.5}, 1.0),
        ({"top_p": 1}, 0.0),
        ({"top_p": 0}, 0.0),
        ({"top_p": 0, "temperature": 1.5}, 0.0),
    ],
)
def test_words_are_sampled_where_that_is_asked_for(given, expected, tiny):
    assert turn(tiny, **given).temperature == expected


@pytest.mark.parametrize("stop", ["a", ["a"], ["a", "b", "c", "d"], None, []])
def test_stops_are_texts(stop, tiny):
    assert turn(tiny, stop=stop).stops == tuple(stop or ())


MESSAGES = "a list of 1 to 1000 messages"
PART = 'must be of the type "text" or "image_url"'


@pytest.mark.parametrize(
    ("messages", "text", "param"),
    [
        (None, MESSAGES, "messages"),
        ("hi", MESSAGES, "messages"),
        ([], MESSAGES, "messages"),
        ([user("hi")] * 1001, MESSAGES, "messages"),
        ([1], "an object with a role (system, developer, user, assistant). Got None.", "messages[0]"),
        ([{"role": "tool", "content": "x"}], "Got 'tool'.", "messages[0]"),
        ([{"role": ["user"], "content": "x"}], "Got ['user'].", "messages[0]"),
        ([user("hi"), assistant("hello")], "whose last one is the user's. Got 'assistant'.", "messages"),
        ([SYSTEM], "Got 'system'. Add the user's.", "messages"),
        ([{"role": "user"}], "a text, or a list of texts and pictures. Got None.", "messages[0].content"),
        ([{"role": "user", "content": []}], "a text, or a list of texts and pictures", "messages[0].content"),
        ([user("x" * 32_001)], "at most 32,000 letters long. It has 32,001.", "messages[0].content"),
        ([user("\ud800")], "with half a character", "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], f"{PART}. Got None.", "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], f"{PART}. Got 'in", "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], f"{PART}. Got 'text'", "messages[0].content[0]"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 1}}]}],
            "must be a text. Got 1. Send a data URL.",
            "messages[0].content[0].image_url.url",
        ),
    ],
)
def test_messages_are_checked(messages, text, param, tiny):
    fails(tiny, text, param, messages=messages)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("n", 2, "a whole number from 1 to 1"),
        ("tools", [{}], "`tools` cannot be used here: this model calls no tools. Leave it out."),
        ("logprobs", True, "this server has no settings for single tokens"),
        ("logit_bias", {"1": 1}, "this server has no settings for single tokens"),
        ("frequency_penalty", 0.5, "this server has no settings for single tokens"),
        ("response_format", {"type": "json_object"}, "This model writes plain text."),
        ("tool_choice", "required", "this model calls no tools"),
        ("max_tokens", 0, "a whole number from 1 to 2147483648"),
        ("max_completion_tokens", 2**32, "a whole number from 1 to 2147483648"),
        ("temperature", 2.5, "a number from 0 to 2"),
        ("top_p", -1, "a number from 0 to 1"),
        ("stream", "yes", "true or false"),
        ("stream_options", "usage", "`stream_options` must be an object. Got 'usage'."),
        ("modalities", [], "a list of text, image or both. Got []."),
        ("modalities", ["audio"], "a list of text, image or both. Got ['audio']."),
        ("stop", ["a"] * 5, "a text or up to 4 of them"),
        ("stop", [""], "a text or up to 4 of them"),
        ("stop", "a" * 101, "at most 100 letters long"),
        ("seed", -1, "a whole number from 0 to 9007199254740981"),
        ("num_inference_steps", 201, "a whole number from 1 to 200"),
        ("audio", {}, "Got 'audio'. Known are"),
    ],
)
def test_fields_of_a_turn_are_checked(field, value, text, tiny):
    fails(tiny, text, field, **{field: value})


@pytest.mark.parametrize(
    "harmless",
    [
        {"tools": [], "logprobs": False, "logit_bias": {}, "frequency_penalty": 0, "presence_penalty": 0.0},
        {"n": 1, "user": "me", "metadata": {"a": "b"}, "store": False, "response_format": {"type": "text"}},
        {"stream_options": {"include_usage": True}, "max_tokens": 5, "max_completion_tokens": 7, "model": None},
    ],
)
def test_fields_that_ask_for_nothing_are_taken(harmless, tiny):
    turn(tiny, **harmless)


def test_the_larger_request_is_that_of_the_newer_name(tiny):
    assert turn(tiny, max_tokens=5).max_new_tokens == 5
    assert turn(tiny, max_tokens=100_000, tool_choice="none").max_new_tokens == 4096
    assert turn(tiny, max_tokens=5, max_completion_tokens=7).max_new_tokens == 7


# Turns


def answered(conversations, **fields):
    parts = []
    said = TurnJob(conversations, turn(conversations.pipe, **fields), parts.append).answer()
    return said, parts


def test_words_that_end_at_a_limit_are_said_to_be_cut(conversations, monkeypatch):
    whole, _ = answered(conversations)
    assert not whole.is_cut and len(whole.reply.text) > 20
    said, parts = answered(conversations, max_tokens=3)
    assert said.is_cut and said.num_written == 3
    assert whole.reply.text.startswith(said.reply.text) and "".join(parts).strip() == said.reply.text
    assert not answered(conversations, max_tokens=whole.num_written)[0].is_cut  # it ended with the last of them
    monkeypatch.setattr("blip3o_hf.pipelines.chat.MAX_NEW_TOKENS", 3)
    assert answered(conversations)[0].is_cut  # nobody asked for it, and the words are not whole all the same


def test_a_stop_ends_the_words_before_it(conversations):
    whole = answered(conversations)[0].reply.text
    stop = whole[10:14]
    said, parts = answered(conversations, stop=[stop])
    assert not said.is_cut and said.reply.text == whole[: whole.index(stop)].strip()
    assert "".join(parts).strip() == said.reply.text


def test_seeds_choose_sampled_words(conversations):
    asked = {"messages": [user("say something else of the moon")], "max_tokens": 12}
    texts = [answered(conversations, temperature=2, seed=seed, **asked)[0].reply.text for seed in (0, 0, 1, 2, 3)]
    assert texts[0] == texts[1] and len(set(texts)) > 1
    likeliest = answered(conversations, **asked)[0].reply.text
    assert answered(conversations, temperature=2, top_p=0, **asked)[0].reply.text == likeliest
    assert answered(conversations, temperature=0, **asked)[0].reply.text == likeliest


def test_a_cancelled_turn_stops_early(conversations, monkeypatch):
    job = TurnJob(conversations, turn(conversations.pipe, temperature=2, max_tokens=300), lambda part: None)
    job.cancel()
    assert job.answer().num_written <= 1
    steps, own = [], Stop.__call__
    monkeypatch.setattr(
        Stop, "__call__", lambda self, pipe, step, *rest: steps.append(step) or own(self, pipe, step, *rest)
    )
    job = TurnJob(conversations, turn(conversations.pipe, modalities=["image"], plan=False), lambda part: None)
    job.cancel()
    job.answer()
    assert steps == [0]


def test_the_pictures_of_messages_have_so_many_pixels_together(tiny, monkeypatch, make_image, shown):
    monkeypatch.setattr("blip3o_hf.serving.pictures.MAX_PIXELS_TOGETHER", 2 * 64 * 64)
    parts = [shown(make_image(seed)) for seed in (0, 0, 1)]
    text = {"type": "text", "text": "hi"}
    assert len(turn(tiny, messages=[{"role": "user", "content": [*parts, text]}]).images) == 3
    more = [*parts, shown(make_image(2)), text]
    fails(
        tiny, "pixels together", "messages[0].content[3].image_url.url", messages=[{"role": "user", "content": more}]
    )
