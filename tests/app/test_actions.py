"""What the buttons of the app do, without the page: the same as the pipelines, for many users, and errors in words."""

import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from blip3o_hf.app.actions import (
    Conversations,
    Sampling,
    edit,
    generate,
    open_uploads,
    reconstruct,
    unknown_words,
)
from blip3o_hf.models.target_encoder import square_image_processor
from blip3o_hf.pipelines.chat import Blip3oChat
from blip3o_hf.pipelines.checking import BackboneChecker
from blip3o_hf.pipelines.reconstruction import Blip3oReconstructionPipeline

FAST = Sampling(seed=3, num_inference_steps=2, guidance_scale=1.5)
CALL = {"num_inference_steps": 2, "guidance_scale": 1.5}


@pytest.fixture
def upload(tmp_path, make_image):
    path = tmp_path / "upload.png"
    make_image().save(path)
    return str(path)


@pytest.fixture
def conversations(pipeline):
    return Conversations(pipeline)


def generators(count):
    return [torch.Generator().manual_seed(3 + index) for index in range(count)]


def pictures(messages):
    items = [item for message in messages if not isinstance(message["content"], str) for item in message["content"]]
    return [np.asarray(item["image"]) for item in items if item["type"] == "image"]


# Single pictures


def test_generate_draws_what_the_pipeline_draws_with_these_seeds(pipeline):
    shown, note = generate(pipeline, "two red circles", 2, FAST)
    expected = pipeline("two red circles", num_images_per_prompt=2, generator=generators(2), **CALL).images
    assert note is None and [caption for _, caption in shown] == ["seed 3", "seed 4"]
    for (image, _), own in zip(shown, expected, strict=True):
        np.testing.assert_array_equal(image, own)


def test_generate_shows_the_plan_it_drew_from(pipeline):
    _, note = generate(pipeline, "two red circles", 1, replace(FAST, plan=True))
    (plan,) = pipeline("two red circles", plan=True, generator=generators(1), **CALL).plans
    assert note == f"Plan of seed 3: {plan}"


def test_generate_says_how_often_it_drew_and_what_it_doubts(pipeline, monkeypatch):
    scores = [[0.9, 0.1], [0.2]]
    monkeypatch.setattr(BackboneChecker, "__call__", lambda self, images, texts: scores.pop(0))
    shown, _ = generate(pipeline, "two red circles", 2, replace(FAST, num_attempts=2))
    assert [caption for _, caption in shown] == ["seed 3", "seed 4, attempt 2, may be wrong"]


def test_words_that_were_never_read_are_named(pipeline, monkeypatch):
    assert unknown_words(pipeline, "fluffy") is None
    monkeypatch.setattr(pipeline.processor, "has_whole_words", True)
    assert unknown_words(pipeline, "two red circles") is None
    note = "The model never read 'fluffy', 'dogs'. It uses the other words."
    assert unknown_words(pipeline, "two fluffy red Dogs") == note
    assert generate(pipeline, "two fluffy red Dogs", 1, FAST)[1] == note


def test_edit_is_the_pipeline_with_the_uploads(pipeline, upload, make_image):
    expected = pipeline("remove it", image=[make_image()] * 2, generator=generators(1), **CALL).images[0]
    np.testing.assert_array_equal(edit(pipeline, "remove it", [upload, upload], FAST), expected)


@pytest.fixture
def reconstruction(make_pipeline):
    def make(**settings):
        torch.manual_seed(0)
        config = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        )
        encoder = CLIPVisionModel(config).eval()
        return Blip3oReconstructionPipeline(make_pipeline(**settings), encoder, square_image_processor(32))

    return make


def test_reconstruct_shows_each_picture_and_how_near_both_ways_come(reconstruction, upload):
    pipe = reconstruction()
    shown = reconstruct(pipe, [upload, upload], FAST)
    assert [caption.split(":")[0] for _, caption in shown] == ["original", "autoencoder", "unified"] * 2
    assert shown[1][1].startswith("autoencoder: cosine ") and shown[1][1].endswith(" dB")
    output = pipe(open_uploads([upload, upload]), "unified", generator=generators(2), **CALL)
    np.testing.assert_array_equal(shown[5][0], output.images[1])
    assert shown[5][1] == f"unified: cosine {output.feature_cosine[1]:.3f}, PSNR {output.psnr[1]:.1f} dB"


def test_a_model_that_does_not_see_reconstructs_by_encoder_and_decoder_alone(reconstruction, upload):
    shown = reconstruct(reconstruction(backbone="llama"), [upload], FAST)
    assert [caption.split(":")[0] for _, caption in shown] == ["original", "autoencoder"]


# Conversations


def test_users_do_not_mix(conversations, upload):
    def talk(parts):
        for part in range(2):
            for name, (kind, text, paths) in parts.items():
                state[name] = conversations.turn(state.get(name, ()), kind, f"{text} {part}", paths, FAST)

    state = {}
    both = {"one": ("draw", "a red circle", [upload]), "two": ("ask", "how many circles?", [])}
    talk(both)
    together, state = state, {}
    for name in both:
        talk({name: both[name]})
    for name in both:
        assert [said.text for said in conversations.transcript(together[name])] == [
            said.text for said in conversations.transcript(state[name])
        ]
        for mine, alone in zip(pictures(together[name]), pictures(state[name]), strict=True):
            np.testing.assert_array_equal(mine, alone)


def test_every_kind_of_turn_is_that_of_the_chat(conversations, pipeline, upload, make_image):
    chat, messages = Blip3oChat(pipeline), ()
    kinds = {
        "draw": lambda text, images: chat.draw(text, images, generators(1)[0], plan=False, **CALL),
        "ask": lambda text, images: chat.ask(text, images),
        "send": lambda text, images: chat.send(text, images, generators(1)[0], CALL),
        "edit": lambda text, images: chat.edit(text, images[0] if images else None, generators(1)[0], **CALL),
    }
    for paths in ([], [upload]):
        for kind, say in kinds.items():
            say(f"{kind} two circles", [make_image()] if paths else [])
            messages = conversations.turn(messages, kind, f"{kind} two circles", paths, FAST)
    assert [message["role"] for message in messages] == [message["role"] for message in chat.messages]
    for mine, expected in zip(pictures(messages), pictures(chat.messages), strict=True):
        np.testing.assert_array_equal(mine, expected)


def test_a_failed_turn_leaves_the_conversation_and_the_next_one_works(conversations, upload, tmp_path):
    messages = conversations.turn((), "draw", "a red circle", [], FAST)
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    for kind, text, paths, error in (
        ("ask", " ", [], "A turn must say something"),
        ("ask", "circles " * 600, [], "A conversation must fit the backbone's context"),
        ("ask", "what is this?", [str(bad)], "An image must be readable"),
        ("sing", "la", [], "Unknown kind of turn 'sing'"),
    ):
        before = list(messages)
        with pytest.raises(ValueError, match=error):
            conversations.turn(messages, kind, text, paths, FAST)
        assert list(messages) == before
    assert len(conversations.turn(messages, "edit", "make it blue", [], FAST)) == 4


def test_only_the_last_to_speak_has_keys_and_values_in_memory(conversations):
    one = conversations.turn((), "ask", "how many?", [], FAST)
    first = conversations._last
    one = conversations.turn(one, "ask", "how many?", [], FAST)
    assert conversations._last is first
    conversations.turn((), "ask", "how many?", [], FAST)
    assert conversations._last is not first
    assert len(conversations.turn(one, "ask", "how many?", [], FAST)) == 6


def test_a_transcript_has_the_words_of_the_user(conversations, upload):
    messages = conversations.turn((), "draw", "two red circles", [upload], FAST)
    messages = conversations.turn(messages, "draw", "a square", [], replace(FAST, plan=True))
    user, picture, planner, planned = conversations.transcript(messages)
    assert (user.role, user.text, len(user.images)) == ("user", "two red circles", 1)
    assert (picture.role, picture.text, len(picture.images)) == ("assistant", "", 1)
    assert (planner.role, planner.text) == ("user", "a square")
    assert (planned.role, planned.text, len(planned.images)) == ("assistant", f"Plan: {messages[2]['plan']}", 1)


def test_oldest_turns_are_forgotten(conversations):
    messages = conversations.turn((), "ask", "one", [], FAST)
    messages = conversations.turn(messages, "ask", "two", [], FAST)
    assert conversations.transcript(conversations.forget(messages, 1))[0].text == "two"
    assert conversations.forget(messages) == () and len(messages) == 4


def test_a_saved_conversation_goes_on_elsewhere(conversations, pipeline, tmp_path):
    with pytest.raises(ValueError, match="This one has none"):
        conversations.save(())
    messages = conversations.turn((), "draw", "a red circle", [], FAST)
    with zipfile.ZipFile(conversations.save(messages)) as archive:
        archive.extractall(tmp_path / "saved")
    loaded = Blip3oChat.load(tmp_path / "saved", pipeline)
    np.testing.assert_array_equal(loaded.images[0], pictures(messages)[0])


# Errors


@pytest.mark.parametrize("seed", [None, -1, 1.5, 2**60])
def test_a_seed_is_a_whole_number(pipeline, seed):
    with pytest.raises(ValueError, match=r"A seed must be a whole number of at least 0\. Got"):
        generate(pipeline, "a circle", 1, Sampling(seed))


def test_pictures_are_needed_where_the_button_says_so(pipeline, reconstruction):
    with pytest.raises(ValueError, match=r"An edit needs a picture\. Got none\. Upload one"):
        edit(pipeline, "make it blue", [], FAST)
    with pytest.raises(ValueError, match=r"A reconstruction needs a picture\. Got none\. Upload one"):
        reconstruct(reconstruction(), [], FAST)


def test_a_bad_upload_is_named_without_its_place_on_the_server(tmp_path):
    path = tmp_path / "cut.png"
    Image.new("RGB", (64, 64), "red").save(path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"An image must be readable.* Got cut\.png: not a readable image") as error:
        open_uploads([str(path)])
    assert str(tmp_path) not in str(error.value)
