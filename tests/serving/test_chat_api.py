"""Conversations by OpenAI's own client: words, pictures, and turns that read only what is new."""

import openai
import pytest
import torch

from blip3o_hf.pipelines.chat import Blip3oChat

DRAW = {"role": "user", "content": "draw a red circle"}
PICTURE = {"seed": 0, "num_inference_steps": 4, "num_attempts": 1}


@pytest.fixture
def ask(client):
    """`ask(*messages, **fields)`: the whole answer."""

    def asked(*messages, **fields):
        return client.chat.completions.create(model="blip3o-tiny", messages=messages, **fields)

    return asked


@pytest.fixture
def read(tiny, monkeypatch):
    """How many tokens the model read at each time, beside those that it wrote."""
    numbers, own = [], tiny.model.read_prompt

    def reading(ids, *given, **named):
        numbers.append(ids.shape[1])
        return own(ids, *given, **named)

    monkeypatch.setattr(tiny.model, "read_prompt", reading)
    return numbers


def user(text, *shown):
    return {"role": "user", "content": [*shown, {"type": "text", "text": text}] if shown else text}


def reply(answer):
    """The message of an answer as the next request has it."""
    message = answer.choices[0].message
    return {"role": "assistant", "content": message.content, "images": getattr(message, "images", None)}


def url_of(answer):
    """The picture of an answer."""
    (image,) = answer.choices[0].message.images
    assert image["type"] == "image_url"
    return image["image_url"]["url"]


def test_words_are_those_of_a_conversation_in_python(ask, tiny):
    answer = ask(user("what can you do?"))
    expected = Blip3oChat(tiny).send("what can you do?").text
    (choice,) = answer.choices
    assert choice.message.content == expected and choice.message.role == "assistant"
    assert choice.finish_reason == "stop" and answer.object == "chat.completion" and answer.model == "blip3o-tiny"
    usage = answer.usage
    assert usage.completion_tokens > 3 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    longer = ask({"role": "system", "content": "you answer briefly"}, user("what can you do?"))
    assert longer.usage.prompt_tokens != usage.prompt_tokens


def test_a_question_about_a_picture_is_answered(ask, make_image, tiny, shown):
    image = make_image()
    question = "what color is the background?"
    expected = Blip3oChat(tiny).ask(question, image).text
    assert ask(user(question, shown(image)), modalities=["text"]).choices[0].message.content == expected


def test_the_model_draws_and_is_asked_about_its_picture(ask, tiny, opened, same_picture, read):
    answer = ask(DRAW, extra_body=PICTURE)
    chat = Blip3oChat(tiny)
    settings = {name: value for name, value in PICTURE.items() if name != "seed"}
    drawn = chat.send(DRAW["content"], generator=torch.Generator().manual_seed(0), sampling=settings)
    assert same_picture(opened(url_of(answer)), drawn.image)
    assert (answer.seed, answer.plan, answer.attempts) == (0, drawn.plan, drawn.attempts) and drawn.plan

    as_parts = {"role": "assistant", "content": answer.choices[0].message.images}  # the form of other servers
    said = [DRAW, reply(answer)]
    for question in ("what color is the circle?", "is there a square?"):
        read.clear()
        expected = chat.ask(question).text
        new = list(read)
        read.clear()
        answer = ask(*said, user(question), modalities=["text"])
        assert answer.choices[0].message.content == expected
        assert read == new  # the server's conversation, too, reads what is new
        said += [user(question), reply(answer)]
    read.clear()
    ask(DRAW, as_parts, *said[2:], user("what color is it?"), modalities=["text"])
    again = sum(read)
    Blip3oChat(tiny, chat.messages).ask("what color is it?")
    assert again <= sum(new) and sum(read) - again > 2 * sum(new)


def test_pictures_that_a_user_shows_are_read_once(ask, make_image, shown, read):
    first = user("how many circles are there?", shown(make_image()))
    answer = ask(first, modalities=["text"])
    at_first = sum(read)
    read.clear()
    ask(first, reply(answer), user("are you sure?"), modalities=["text"])
    assert 0 < sum(read) < 20 < at_first


def test_conversations_by_turns_do_not_disturb_each_other(ask, read):
    system = {"role": "system", "content": "you answer in a few words and tell about shapes alone"}
    chats = [[system, user(f"what is a {shape}?")] for shape in ("circle", "square", "triangle")]
    for chat in chats:
        chat.append(reply(ask(*chat, modalities=["text"], max_tokens=5)))
    read.clear()
    for chat in chats:
        ask(*chat, user("and its color?"), modalities=["text"], max_tokens=5)
    assert len(read) == 3 and max(read) < 20


def test_an_edit_of_the_last_picture_is_a_turn(ask, opened, same_picture):
    first = ask(DRAW, modalities=["image"], extra_body=PICTURE)
    second = ask(DRAW, reply(first), user("make it blue"), modalities=["image"], extra_body=PICTURE)
    pictures = [opened(url_of(answer)) for answer in (first, second)]
    assert not same_picture(*pictures, levels=30)
    assert second.choices[0].finish_reason == "stop" and "blue" in second.plan


def test_stops_limits_and_seeds(ask):
    whole = ask(user("what can you do?")).choices[0].message.content
    cut = ask(user("what can you do?"), max_tokens=4)
    assert whole.startswith(cut.choices[0].message.content) and cut.choices[0].finish_reason == "length"
    assert cut.usage.completion_tokens == 4
    stopped = ask(user("what can you do?"), stop=whole[8:12])
    assert stopped.choices[0].message.content == whole[:8].strip() and stopped.choices[0].finish_reason == "stop"
    sampled = [
        ask(user("what is the moon?"), temperature=2, seed=3, max_tokens=10).choices[0].message.content for _ in "ab"
    ]
    assert sampled[0] == sampled[1]


def test_a_stream_says_the_same_and_counts(ask):
    whole = ask(user("what can you do?"))
    chunks = list(ask(user("what can you do?"), stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant" and len(chunks) > 6
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert said.strip() == whole.choices[0].message.content
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-2:] == [None, "stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in ask(user("what can you do?"), stream=True))


def test_a_stream_may_draw(ask, opened, same_picture):
    whole = ask(DRAW, extra_body=PICTURE)
    chunks = list(ask(DRAW, stream=True, extra_body=PICTURE))
    (image,) = [image for chunk in chunks for image in getattr(chunk.choices[0].delta, "images", None) or ()]
    assert same_picture(*map(opened, (image["image_url"]["url"], url_of(whole))))
    assert chunks[-1].choices[0].finish_reason == "stop" and chunks[-1].plan == whole.plan


def test_a_stream_that_cannot_begin_is_an_error_with_a_status(ask):
    with pytest.raises(openai.BadRequestError, match="A turn must say something"):
        ask(user(" "), stream=True)
    with pytest.raises(openai.BadRequestError, match="A conversation must fit the backbone's context"):
        ask(user("circle " * 3000), stream=True)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([user("what is <|image_pad|>?")], "no images were passed"),
        ([user(" ")], "A turn must say something"),
        ([user("circle " * 3000)], "A conversation must fit the backbone's context, 1024 positions"),
        ([user("hi", {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}})], "fetches nothing"),
        ([user("hi", {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}})], "of another kind"),
    ],
)
def test_what_cannot_be_answered_is_refused(messages, text, ask):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(*messages)
    assert text in caught.value.body["message"] and caught.value.type == "invalid_request_error"
