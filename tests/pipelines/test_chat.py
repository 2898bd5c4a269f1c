"""A conversation says and draws what whole reads of it would; it costs each turn's tokens; failures leave it alone."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LogitsProcessor

from blip3o_hf.models.processing_blip3o import message_images
from blip3o_hf.pipelines import chat as chat_module
from blip3o_hf.pipelines.chat import Blip3oChat

TURNS = 6


class Favour(LogitsProcessor):
    """Makes a token the likeliest wherever it is allowed."""

    def __init__(self, token_id, after=0):
        self.token_id = token_id
        self.left = after

    def __call__(self, input_ids, scores):
        if self.left > 0:
            self.left -= 1
            return scores
        scores = scores.clone()
        scores[:, self.token_id] += 1e4
        return scores


class Streamer:
    """Collects what `generate` gives out as it goes."""

    def __init__(self):
        self.ids, self.is_ended = [], False

    def put(self, value):
        self.ids += value.flatten().tolist()

    def end(self):
        self.is_ended = True


class Interrupted(Exception):
    """As when a user stops a cell."""


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def make_talker(make_pipeline):
    """`make_talker(**settings of make_config)`: a pipeline whose backbone says many different things."""

    def make(**settings):
        torch.manual_seed(1)
        pipe = make_pipeline(tied=False, **settings)
        with torch.no_grad():
            for name, parameter in pipe.model.backbone.named_parameters():
                if name.endswith("weight") and parameter.ndim == 2:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
        # Random weights should say something: words, and no marks of the template, nor an early end.
        unspoken = pipe.processor.tokenizer.all_special_ids
        pipe.model.generation_config.suppress_tokens = unspoken
        return pipe

    return make


@pytest.fixture(scope="module", params=["qwen", "llava"])
def pipe(make_talker, request):
    return make_talker(backbone=request.param, image_positions="backbone")


@pytest.fixture(scope="module")
def pictures(make_image):
    return [make_image(seed) for seed in range(4)]


@pytest.fixture
def short_plans(monkeypatch):
    monkeypatch.setattr(chat_module, "PLAN_TOKENS", 6)
    return 6


def take(chat, turn, pictures):
    """One turn of a conversation with all that there is: questions, pictures, edits, comparisons."""
    if turn == 0:
        return chat.ask("How many circles are there?", pictures[0], max_new_tokens=5)
    if turn == 1:
        return chat.draw("two red circles", generator=seeded(1), num_inference_steps=2)
    if turn == 2:
        return chat.ask("Are there three green triangles?", max_new_tokens=5)
    if turn == 3:
        return chat.edit("a small blue square to the left", generator=seeded(2), num_inference_steps=2)
    if turn == 4:
        return chat.ask("How many yellow circles are there?", pictures[1:3], max_new_tokens=5)
    return chat.draw("a yellow circle", pictures[3], generator=seeded(3), num_inference_steps=2)


def talk(chat, pictures, turns=range(TURNS)):
    return [take(chat, turn, pictures) for turn in turns]


@pytest.fixture(scope="module")
def conversation(pipe, pictures):
    """A finished conversation, and its replies."""
    chat = Blip3oChat(pipe)
    return chat, talk(chat, pictures)


def assert_same_replies(actual, expected, tolerance=1e-4):
    assert [reply.text for reply in actual] == [reply.text for reply in expected]
    for ours, theirs in zip(actual, expected, strict=True):
        assert (ours.image is None) == (theirs.image is None)
        if ours.image is not None:
            torch.testing.assert_close(ours.image_features, theirs.image_features, rtol=0, atol=tolerance)


def full_inputs(pipe, messages):
    return pipe.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def count_read(pipe, act, *arguments, **settings):
    """How many tokens the backbone reads for an action."""
    counts = []

    def count(module, args, kwargs):
        read = kwargs.get("inputs_embeds", kwargs.get("input_ids"))
        counts.append(read.shape[1])

    hook = pipe.model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    try:
        act(*arguments, **settings)
    finally:
        hook.remove()
    return sum(counts)


# One cache for all turns


def test_a_conversation_answers_and_draws(conversation):
    chat, replies = conversation
    assert [reply.image is None for reply in replies] == [True, False, True, False, True, False]
    assert all(reply.text for reply in replies if reply.image is None)
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * TURNS
    assert len(chat.images) == 7  # four that were shown, three that were drawn
    drawn = [reply.image for reply in replies if reply.image is not None]
    assert [chat.images[index] for index in (1, 2, 6)] == drawn
    assert chat.messages[3]["content"] == [{"type": "image", "image": drawn[0]}]
    assert chat.messages[2]["prompt"] == "two red circles"


@pytest.mark.parametrize("backbone", ["qwen", "llama"])
def test_the_cache_changes_nothing(make_talker, pictures, backbone):
    pipe = make_talker(backbone=backbone)
    turns = range(TURNS) if backbone == "qwen" else (2, 2)  # a text-only one is shown nothing
    reused, read_again = (talk(Blip3oChat(pipe, reuse_cache=reuse), pictures, turns) for reuse in (True, False))
    assert_same_replies(reused, read_again)


def test_answers_are_those_of_the_backbone_on_the_whole_conversation(pipe, conversation):
    """Token for token, pictures included, whatever was drawn in between."""
    chat, replies = conversation
    start = pipe.processor.tokenizer.convert_tokens_to_ids("[IMG]")
    unspoken = [*pipe.model.generation_config.suppress_tokens, start]
    for turn in (0, 2, 4):
        inputs = full_inputs(pipe, chat.messages[: 2 * turn + 1])
        assert ("pixel_values" in inputs) and len(message_images(chat.messages[: 2 * turn + 1])) == (1, 0, 2, 0, 5)[
            turn
        ]
        expected = pipe.model.backbone.generate(**inputs, max_new_tokens=5, do_sample=False, suppress_tokens=unspoken)
        (text,) = pipe.processor.post_process_image_text_to_text(expected[:, inputs["input_ids"].shape[1] :])
        assert replies[turn].text == text.strip()


def test_a_picture_is_drawn_from_the_whole_conversation(pipe, conversation, assert_close):
    """The pipeline on the same history, read in one pass, gives the same features."""
    chat, replies = conversation
    inputs = pipe.processor.encode_prompts(
        ["a yellow circle"], images=[chat.images[5:6]], histories=[chat.messages[:10]]
    )
    with torch.no_grad():
        condition = pipe.model.encode_condition(**inputs)
    output = pipe(condition=condition, generator=seeded(3), num_inference_steps=2, output_type="features")
    assert_close(replies[5].image_features, output.image_features, 1e-4)


def test_what_was_said_and_shown_changes_the_picture(pipe, conversation):
    _, replies = conversation
    alone = Blip3oChat(pipe).draw("two red circles", generator=seeded(1), num_inference_steps=2)
    assert (alone.image_features - replies[1].image_features).abs().max() > 1e-3


def test_a_turn_costs_its_own_tokens(pipe, pictures):
    chats = [Blip3oChat(pipe, reuse_cache=reuse) for reuse in (True, False)]
    reused, read_again = ([count_read(pipe, take, chat, turn, pictures) for turn in range(4)] for chat in chats)
    assert reused[0] == read_again[0]
    for turn in (1, 2, 3):
        assert reused[turn] < 0.75 * read_again[turn]
    # A new session on old messages reads them once, then no more.
    later = Blip3oChat(pipe, chats[0].messages)
    first, second = (count_read(pipe, later.ask, "How many?", max_new_tokens=2) for _ in range(2))
    assert first > 3 * second


def test_pictures_are_encoded_once(pipe, pictures):
    seen = []
    backbone = pipe.model.backbone.model
    visual = backbone.visual if hasattr(backbone, "visual") else backbone.vision_tower
    hook = visual.register_forward_pre_hook(lambda module, args, kwargs: seen.append(len(args[0])), with_kwargs=True)
    try:
        chat = Blip3oChat(pipe)
        for turn in (0, 2, 2):
            take(chat, turn, pictures)
    finally:
        hook.remove()
    assert seen == [64 if hasattr(backbone, "visual") else 1]  # patches of one picture, or one picture


def test_a_picture_put_in_the_place_of_another_is_noticed(pipe, pictures):
    chat, again = (Blip3oChat(pipe, reuse_cache=reuse) for reuse in (True, False))
    for each in (chat, again):
        talk(each, pictures, (0, 1))
        each.messages[0]["content"][0]["image"] = pictures[3]
    assert_same_replies(talk(chat, pictures, (2, 1)), talk(again, pictures, (2, 1)))
    kept = Blip3oChat(pipe)
    talk(kept, pictures, (0, 1))
    drawn = take(kept, 1, pictures)
    swapped = Blip3oChat(pipe)
    talk(swapped, pictures, (0, 1))
    swapped.messages[0]["content"][0]["image"] = pictures[3]
    assert (take(swapped, 1, pictures).image_features - drawn.image_features).abs().max() > 1e-4


def test_words_put_in_the_place_of_others_are_noticed(pipe, pictures):
    chats = [Blip3oChat(pipe, reuse_cache=reuse) for reuse in (True, False)]
    for chat in chats:
        talk(chat, pictures, (1, 2))
        chat.messages[0]["content"] = "Please generate two small triangles"
    assert_same_replies(*(talk(chat, pictures, (2, 1)) for chat in chats))


def test_two_conversations_on_one_pipeline_do_not_meet(pipe, pictures, conversation):
    """The backbone keeps the positions of its last read; the pipeline draws in between, too."""
    _, expected = conversation
    first, second = Blip3oChat(pipe), Blip3oChat(pipe)
    mixed = []
    for turn in range(TURNS):
        mixed.append(take(first, turn, pictures))
        take(second, (4, 2, 1, 0, 3, 2)[turn], pictures)
        pipe("two red circles", image=pictures[1], num_inference_steps=1, output_type="features")
        if turn == 2:
            pipe.model.generate(**full_inputs(pipe, second.messages), max_new_tokens=2)
    assert_same_replies(mixed, expected, 1e-6)


def test_a_conversation_leaves_the_backbone_s_answers_alone(pipe, pictures):
    question = {"role": "user", "content": [{"type": "image", "image": pictures[0]}, {"type": "text", "text": "How?"}]}
    inputs = full_inputs(pipe, [question])

    def answer():
        return pipe.model.generate(**inputs, max_new_tokens=6, do_sample=False)

    before = answer()
    talk(Blip3oChat(pipe), pictures, (4, 1))
    assert torch.equal(answer(), before)


def test_images_have_the_backbone_s_positions_in_every_conversation(make_talker, pictures, conversation):
    """What was read to answer serves to draw, with a published checkpoint, too."""
    backbone = conversation[0].pipe.model.config.backbone_config.model_type
    kind = "llava" if backbone == "llava" else "qwen"
    published = Blip3oChat(make_talker(backbone=kind, image_positions="sequential"))
    assert_same_replies(talk(published, pictures, (0, 1)), conversation[1][:2])


def test_images_of_every_kind_are_shown(pipe, pictures, tmp_path):
    pictures[0].save(tmp_path / "a.png")
    given = (pictures[0], [pictures[0]], np.asarray(pictures[0]), str(tmp_path / "a.png"))
    texts = {Blip3oChat(pipe).ask("How many?", image, max_new_tokens=5).text for image in given}
    asked = {"role": "user", "content": [{"type": "image", "image": given[2]}, {"type": "text", "text": "How many?"}]}
    chat = Blip3oChat(pipe, [asked, {"role": "assistant", "content": "one"}])
    assert len(texts) == 1 and isinstance(chat.images[0], Image.Image)
    assert asked["content"][0]["image"] is given[2]


# The model chooses


@pytest.mark.parametrize("num_words", [0, 3])
def test_the_model_may_choose_to_draw(pipe, pictures, num_words):
    start = pipe.processor.tokenizer.convert_tokens_to_ids("[IMG]")
    chat, drawing = Blip3oChat(pipe), Blip3oChat(pipe)
    talk(chat, pictures, (0,)), talk(drawing, pictures, (0,))
    sampling = {"num_inference_steps": 2}
    reply = chat.send(
        "two red circles", generator=seeded(1), sampling=sampling, logits_processor=[Favour(start, num_words)]
    )
    expected = drawing.draw("two red circles", generator=seeded(1), **sampling)
    assert_same_replies([reply], [type(reply)(reply.text, expected.image, expected.image_features)])
    assert (reply.text is None) == (num_words == 0)
    assert [m["role"] for m in chat.messages] == [m["role"] for m in drawing.messages]
    assert chat.messages[-2] == drawing.messages[-2]


def test_the_model_may_choose_to_answer(pipe):
    chat, asking = Blip3oChat(pipe), Blip3oChat(pipe)
    reply = chat.send("How many circles are there?", max_new_tokens=5)
    assert reply.image is None
    assert reply == asking.ask("How many circles are there?", max_new_tokens=5)
    assert chat.messages == asking.messages


def test_a_question_is_never_answered_with_a_picture(pipe):
    start = pipe.processor.tokenizer.convert_tokens_to_ids("[IMG]")
    streamer = Streamer()
    chat = Blip3oChat(pipe)
    chat.ask("How many?", max_new_tokens=3, logits_processor=[Favour(start)], streamer=streamer)
    assert start not in streamer.ids[-3:]


def test_a_streamer_hears_the_answer_as_it_comes(pipe, pictures):
    chat, streamer = Blip3oChat(pipe), Streamer()
    talk(chat, pictures, (0, 1))
    reply = chat.ask("How many circles are there?", max_new_tokens=5, streamer=streamer)
    assert streamer.is_ended
    assert pipe.processor.tokenizer.decode(streamer.ids[-5:]).strip() == reply.text


def test_sampling_follows_the_generator_of_torch(pipe):
    def say(seed):
        torch.manual_seed(seed)
        return Blip3oChat(pipe).ask("How many circles are there?", max_new_tokens=8, do_sample=True).text

    assert say(3) == say(3) != say(4)


def test_a_backbone_without_an_end_chooses_too(make_talker):
    pipe = make_talker(backbone="llama")
    pipe.model.generation_config.eos_token_id = None
    start = pipe.processor.tokenizer.convert_tokens_to_ids("[IMG]")
    reply = Blip3oChat(pipe).send("a circle", sampling={"num_inference_steps": 1}, logits_processor=[Favour(start)])
    assert reply.image is not None


# Plans


def test_a_plan_is_asked_for_and_drawn_and_kept_beside_the_prompt(pipe, pictures, short_plans):
    chat, by_hand = Blip3oChat(pipe), Blip3oChat(pipe)
    reply = chat.draw("two red circles", pictures[0], generator=seeded(1), plan=True, num_inference_steps=2)
    asked = pipe.processor.plan_instruction.replace("{caption}", "two red circles")
    plan = by_hand.ask(asked, pictures[0], max_new_tokens=short_plans).text
    by_hand.forget()
    drawn = by_hand.draw(plan, pictures[0], generator=seeded(1), num_inference_steps=2)
    assert reply.plan == plan != "" and reply.text is None
    assert_same_replies([reply], [drawn])
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]
    asked = chat.messages[0]
    assert (asked["prompt"], asked["plan"]) == ("two red circles", plan)
    assert asked["content"] == by_hand.messages[0]["content"]


@pytest.fixture
def planning(pipe):
    """The pipeline, saved as one that plans by default."""
    pipe.register_to_config(default_plan=True)
    yield pipe
    pipe.register_to_config(default_plan=False)


def test_a_pipeline_that_plans_by_default_plans_in_conversations_too(planning, short_plans):
    pipe = planning
    chat, told = Blip3oChat(pipe), Blip3oChat(pipe)
    planned = chat.draw("two red circles", generator=seeded(1), num_inference_steps=2)
    again = told.draw("two red circles", generator=seeded(1), plan=True, num_inference_steps=2)
    assert planned.plan == again.plan is not None
    assert told.draw("a blue square", plan=False, num_inference_steps=2).plan is None
    edited = chat.edit("make it blue", generator=seeded(2), num_inference_steps=2)
    assert edited.plan and chat.messages[2]["plan"] == edited.plan


def looks(monkeypatch, scores):
    """What the model says of its pictures, one score after the other; returns what it was asked about."""
    seen, left = [], list(scores)

    def look(self, images, texts):
        seen.append(texts)
        return [left.pop(0) for _ in images]

    monkeypatch.setattr(chat_module.BackboneChecker, "__call__", look)
    return seen


def test_a_rejected_picture_is_drawn_again_and_the_best_is_kept(pipe, monkeypatch):
    seen = looks(monkeypatch, [0.1, 0.4, 0.2])
    generator = seeded(1)
    reply = Blip3oChat(pipe).draw("two red circles", generator=generator, num_attempts=3, num_inference_steps=2)
    assert (reply.attempts, reply.score) == (3, 0.4) and seen == [["two red circles"]] * 3
    same = seeded(1)
    drawn = [Blip3oChat(pipe).draw("two red circles", generator=same, num_inference_steps=2) for _ in range(3)]
    assert np.array_equal(reply.image, drawn[1].image)
    assert all(one.attempts is None for one in drawn)


def test_an_accepted_picture_is_drawn_once(pipe, monkeypatch):
    looks(monkeypatch, [0.9])
    reply = Blip3oChat(pipe).draw("two red circles", num_attempts=3, num_inference_steps=2)
    assert (reply.attempts, reply.score) == (1, 0.9)


def test_an_edit_is_looked_at_where_a_plan_says_what_it_shows(pipe, pictures, monkeypatch, short_plans):
    seen = looks(monkeypatch, [0.9])
    chat = Blip3oChat(pipe)
    plain = chat.edit("make it blue", pictures[0], num_attempts=3, num_inference_steps=2)
    assert plain.attempts is None and not seen
    planned = chat.edit("make it blue", pictures[0], num_attempts=3, plan=True, num_inference_steps=2)
    assert planned.attempts == 1 and seen == [[planned.plan]]


def test_an_answer_begins_with_a_word_or_an_image(pipe):
    """Where the model would say nothing, the next likeliest of the two is taken; else a sentence."""
    tokenizer = pipe.processor.tokenizer
    start = tokenizer.convert_tokens_to_ids(pipe.processor.image_start_token)
    ends, spaces = Favour(tokenizer.eos_token_id), Favour(tokenizer.convert_tokens_to_ids("Ġ"))
    said = Blip3oChat(pipe).ask("How many circles are there?", logits_processor=[ends], max_new_tokens=3).text
    assert said and said != chat_module.NO_ANSWER
    blank = Blip3oChat(pipe)
    assert blank.ask("How many?", logits_processor=[spaces], max_new_tokens=2).text == chat_module.NO_ANSWER
    assert blank.messages[-1]["content"] == chat_module.NO_ANSWER

    def favour_image(input_ids, scores):
        scores = ends(input_ids, scores)
        scores[:, start] += 5e3
        return scores

    reply = Blip3oChat(pipe).send(
        "two red circles", logits_processor=[favour_image], sampling={"num_inference_steps": 2}
    )
    assert reply.image is not None


# Saved and forgotten


def test_a_saved_conversation_goes_on_as_if_it_had_not_been(pipe, pictures, tmp_path):
    chat = Blip3oChat(pipe, [{"role": "system", "content": "You are a small assistant."}])
    talk(chat, pictures, (0, 1))
    chat.save(tmp_path / "chat")
    loaded = Blip3oChat.load(tmp_path / "chat", pipe)
    assert len(loaded.images) == 2
    for image, expected in zip(loaded.images, chat.images, strict=True):
        assert np.array_equal(image, expected)
    replies = talk(loaded, pictures, (2, 3))
    assert_same_replies(replies, talk(chat, pictures, (2, 3)))
    chat.save(tmp_path / "chat")
    again = Blip3oChat.load(tmp_path / "chat", pipe)
    for ours, theirs in zip(again.messages, chat.messages, strict=True):
        assert (ours["role"], ours.get("prompt")) == (theirs["role"], theirs.get("prompt"))
        assert isinstance(theirs["content"], list) or ours["content"] == theirs["content"]
    assert np.array_equal(again.images[-1], replies[-1].image)


@pytest.mark.parametrize("name", ["../secret.png", "..", ".", "", "sub/secret.png", "/etc/hostname", 3, None])
def test_a_saved_conversation_names_pictures_beside_it_alone(pipe, tmp_path, pictures, name):
    folder = tmp_path / "chat"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder / "sub"):
        pictures[0].save(place / "secret.png")
    message = {"role": "user", "content": [{"type": "image", "image": name}]}
    (folder / "conversation.json").write_text(json.dumps({"format": 1, "messages": [message]}))
    text = f"A saved conversation names pictures beside it. {folder} names {name!r}. Save it again."
    with pytest.raises(ValueError, match=re.escape(text)):
        Blip3oChat.load(folder, pipe)


def test_a_picture_of_a_saved_conversation_is_no_link(pipe, tmp_path, pictures):
    folder = tmp_path / "chat"
    Blip3oChat(pipe, [{"role": "user", "content": [{"type": "image", "image": pictures[0]}]}]).save(folder)
    (folder / "image-0.png").rename(tmp_path / "private.png")
    (folder / "image-0.png").symlink_to(tmp_path / "private.png")
    message = f"A saved conversation holds its pictures itself. {folder / 'image-0.png'} is a link. Save it again."
    with pytest.raises(ValueError, match=re.escape(message)):
        Blip3oChat.load(folder, pipe)


def test_a_saved_conversation_whose_picture_is_gone_is_refused(pipe, tmp_path, pictures):
    content = [{"type": "image", "image": pictures[0]}, {"type": "text", "text": "How many?"}]
    Blip3oChat(pipe, [{"role": "user", "content": content}]).save(tmp_path)
    (tmp_path / "image-0.png").unlink()
    with pytest.raises(ValueError, match=r"An image must be readable, .* no image file at .*image-0\.png\."):
        Blip3oChat.load(tmp_path, pipe)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name"),
        ('{"format": 1}', "'messages'"),
        ("[1]", "list indices must be"),
        ('{"format": 1, "messages": [{"role": "user"}]}', "A message must have a role"),
        ('{"format": 1, "messages": "hello"}', "A message must have a role"),
        ('{"format": 99, "messages": []}', "its `format` is 99, and this version reads 1"),
        ('{"messages": []}', "'format'"),
        ("[" * 100_000, "too many nested brackets"),
    ],
)
def test_a_damaged_conversation_is_refused(pipe, tmp_path, content, reason):
    (tmp_path / "conversation.json").write_text(content)
    message = f"{tmp_path / 'conversation.json'} must hold what `save` wrote. It does not: "
    with pytest.raises(ValueError, match=re.escape(message) + f".*{reason}.*Save it again."):
        Blip3oChat.load(tmp_path, pipe)


def test_a_folder_without_a_conversation_is_named(pipe, tmp_path):
    message = f"A saved conversation is a folder with conversation.json. {tmp_path} has none."
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        Blip3oChat.load(tmp_path, pipe)


def test_what_is_forgotten_has_no_say(pipe, pictures):
    system = {"role": "system", "content": "You are a small assistant."}
    chat, short = Blip3oChat(pipe, [system]), Blip3oChat(pipe, [system])
    talk(chat, pictures, (0, 1, 2))
    chat.forget(1)
    assert len(chat.messages) == 5 and len(chat.images) == 1
    short.messages += chat.messages[1:]
    assert_same_replies(talk(chat, pictures, (2,)), talk(short, pictures, (2,)))
    chat.forget(0)
    assert len(chat.messages) == 7
    chat.forget()
    assert chat.messages == [system]
    new = Blip3oChat(pipe, [system])
    assert_same_replies(talk(chat, pictures, (1, 0)), talk(new, pictures, (1, 0)))
    for wrong in (-1, 1.0, True):
        message = f"`num_turns` is a number of turns. Got {wrong!r}. Leave it out to forget them all."
        with pytest.raises(ValueError, match=re.escape(message)):
            chat.forget(wrong)


# Failures


@pytest.fixture
def before(pipe, pictures, conversation, short_plans):
    """A conversation of two turns, and a function: it stands as it was, and goes on as it would have."""
    chat = Blip3oChat(pipe)
    talk(chat, pictures, (0, 1))
    messages = list(chat.messages)

    def check():
        assert len(chat.messages) == len(messages)
        assert all(ours is theirs for ours, theirs in zip(chat.messages, messages, strict=True))
        assert_same_replies(talk(chat, pictures, (2, 3)), conversation[1][2:4])

    return chat, check


@pytest.mark.parametrize("do", ["ask", "draw", "send", "plan"])
def test_a_conversation_too_long_for_the_context_stays_as_it_was(before, do):
    chat, check = before
    long = "two red circles " * 400
    pattern = (
        r"A conversation must fit the backbone's context, 512 positions\. With this turn it has \d+\. Drop its "
        r"beginning with `forget\(1\)`, or start a new one\."
    )
    with pytest.raises(ValueError, match=pattern):
        chat.draw(long, plan=True) if do == "plan" else getattr(chat, do)(long)
    check()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_inference_steps": 0}, ValueError, "`num_inference_steps` must be an integer of at least 1. Got 0."),
        ({"generator": 3, "plan": True}, TypeError, "`generator` must be a torch.Generator, or a list"),
        ({"height": 64, "plan": True}, ValueError, "Only a diffusion decoder takes"),
        *(
            (
                {name: value},
                TypeError,
                f"A turn makes one picture, and the conversation goes on from it. Got {name}. Leave it out, or call "
                f"the pipeline.",
            )
            for name, value in (
                ("output_type", "features"),
                ("num_images_per_prompt", 2),
                ("return_dict", False),
                ("condition", None),
                ("image", None),
            )
        ),
    ],
)
def test_a_picture_that_fails_leaves_the_conversation_as_it_was(before, arguments, error, message):
    chat, check = before
    with pytest.raises(error, match=re.escape(message)):
        chat.draw("a circle", **arguments)
    check()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        *(
            (
                {name: value},
                TypeError,
                f"A turn makes one answer, and the conversation goes on from it. Got {name}. Leave it out, or call "
                f"the pipeline.",
            )
            for name, value in (("num_beams", 2), ("num_return_sequences", 2), ("return_dict_in_generate", True))
        ),
        ({"max_new_token": 3}, ValueError, "max_new_token"),
        ({"images": [None]}, TypeError, "An image must be a PIL image, a uint8 array [H, W, 3], or the path of a"),
    ],
)
def test_an_answer_that_fails_leaves_the_conversation_as_it_was(before, arguments, error, message):
    chat, check = before
    with pytest.raises(error, match=re.escape(message)):
        chat.ask("How many?", **arguments)
    check()


def test_a_picture_that_the_model_began_and_cannot_draw_leaves_the_conversation_as_it_was(before, pipe):
    chat, check = before
    start = pipe.processor.tokenizer.convert_tokens_to_ids("[IMG]")
    with pytest.raises(ValueError, match="`num_inference_steps` must be an integer of at least 1"):
        chat.send("a circle", sampling={"num_inference_steps": 0}, logits_processor=[Favour(start, after=2)])
    check()


@pytest.mark.parametrize("action", ["ask", "draw"])
@pytest.mark.parametrize("num_passes", [1, 2])
def test_an_interrupt_leaves_the_conversation_as_it_was(before, pipe, action, num_passes):
    """Between two layers, so that one has read more than the next."""
    chat, check = before
    passes = []

    def interrupt(module, args, kwargs):
        passes.append(None)
        if len(passes) == num_passes:
            raise Interrupted

    hook = pipe.model.get_decoder().layers[1].register_forward_pre_hook(interrupt, with_kwargs=True)
    with pytest.raises(Interrupted):
        getattr(chat, action)("Are there two small red circles?")
    hook.remove()
    check()


@pytest.mark.parametrize("text", ["", "  ", None, 3])
def test_a_turn_must_say_something(pipe, text):
    chat = Blip3oChat(pipe)
    for act in (chat.send, chat.ask, chat.draw, chat.edit):
        message = f"A turn must say something. Got {text!r}. Write a question, or what to draw."
        if act == chat.edit:
            message = "An edit needs a picture. This conversation has none. Draw one first, or pass `image`."
        with pytest.raises(ValueError, match=re.escape(message)):
            act(text)
    assert chat.messages == []


@pytest.mark.parametrize(
    "message",
    [
        "hello",
        {"role": "user"},
        {"content": "hello"},
        {"role": "tool", "content": "hello"},
        {"role": "user", "content": 3},
        {"role": "user", "content": ["hello"]},
        {"role": "user", "content": [{"type": "video", "video": "a.mp4"}]},
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "user", "content": [{"type": "text", "text": 3}]},
    ],
)
def test_messages_that_are_none_are_refused(pipe, message):
    text = (
        "A message must have a role (system, user, assistant) and a content, a text or a list of texts and images. "
        f"Got {message!r:.80}."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        Blip3oChat(pipe, [message])


def test_an_earlier_message_must_hold_images(pipe):
    with pytest.raises(TypeError, match=r"An image must be a PIL image, .* Got int\."):
        Blip3oChat(pipe, [{"role": "user", "content": [{"type": "image", "image": 3}]}])


def test_a_text_only_backbone_talks_and_draws_but_sees_nothing(make_talker, pictures):
    chat = Blip3oChat(make_talker(backbone="llama"))
    assert chat.ask("How many circles are there?", max_new_tokens=5).text
    message = (
        "This model's backbone (llama) reads text only. Got an image. Use a model with a vision-language backbone "
        "such as Qwen2.5-VL."
    )
    shown = {"role": "user", "content": [{"type": "image", "image": pictures[0]}]}
    for act in (
        lambda: chat.ask("How many?", pictures[0]),
        lambda: chat.edit("Make it red", pictures[0]),
        lambda: Blip3oChat(chat.pipe, [shown]),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            act()
    assert len(chat.messages) == 2


def test_a_conversation_needs_a_processor(make_model, make_decoder, make_pipeline):
    pipe = make_pipeline()
    pipe.processor = None
    message = (
        "A conversation needs a processor, which reads the words. This pipeline has none. Load it with "
        "processor=Blip3oProcessor.from_pretrained(...)."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Blip3oChat(pipe)
