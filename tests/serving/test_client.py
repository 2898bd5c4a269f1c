"""A model behind a server is used as one that is loaded: from Python, the command line and the page of the app."""

import subprocess
import sys

import httpx2
import pytest
import torch
from PIL import Image

from blip3o_hf.app.actions import Conversations, Sampling, edit, generate, unknown_words
from blip3o_hf.app.served import ServedPipeline
from blip3o_hf.cli import main
from blip3o_hf.serving.client import Client

SAMPLING = Sampling(seed=5, num_inference_steps=2, guidance_scale=1.0, num_attempts=1, plan=False)


@pytest.fixture
def asking(live):
    return Client(live.url)


@pytest.fixture
def served(asking):
    return ServedPipeline(asking)


def pictures(messages):
    parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
    return [part["image"] for part in parts if part["type"] == "image"]


def test_pictures_are_those_of_the_pipeline_also_over_several_requests(asking, tiny, fast, same_picture):
    drawn = asking.generate("two red circles", 12, 3, **fast)
    generators = [torch.Generator().manual_seed(3 + index) for index in range(12)]
    expected = tiny("two red circles", num_images_per_prompt=12, generator=generators, **fast).images
    assert all(same_picture(*pair, levels=1) for pair in zip(drawn.images, expected, strict=True))
    assert drawn.plans is None and drawn.unknown_words == ()


def test_an_address_with_v1_is_the_same(live, asking, fast, same_picture):
    (first,) = asking.generate("a red circle", 1, 0, **fast).images
    (second,) = Client(f"{live.url}/v1/").generate("a red circle", 1, 0, **fast).images
    assert same_picture(first, second)


def test_what_the_server_says_of_a_request_is_the_error(asking):
    with pytest.raises(ValueError, match=r"`num_inference_steps` must be a whole number from 1 to 200\. Got 0"):
        asking.generate("a red circle", 1, 0, num_inference_steps=0)


@pytest.mark.parametrize("url", ["localhost:8000", "http://me:secret@localhost"])
def test_an_address_must_be_one(url):
    with pytest.raises(ValueError, match="--server must ") as caught:
        Client(url)
    assert "secret" not in str(caught.value)


def test_a_server_that_is_not_there_is_said(tmp_path):
    with pytest.raises(OSError, match=r"must answer. It does not \(ConnectError\). Start it with `blip3o-hf serve`"):
        Client("http://127.0.0.1:9").description()


def test_a_key_is_in_no_error(make_server, listening, monkeypatch):
    with listening(make_server(api_keys=("right",))) as live:
        with pytest.raises(OSError, match="answered 401") as caught:
            Client(live.url, "wrong-key").description()
        assert "wrong-key" not in str(caught.value)
        assert Client(live.url, "right").description()["id"] == "blip3o-tiny"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx2.Response(200, text="<html>"), "must answer in JSON. It does not. Check the address"),
        (httpx2.Response(200, json={"data": [{"b64_json": "bm8="}]}), "must send pictures. Got 2 bytes"),
        (httpx2.Response(503, json={"error": {"message": "It stops."}}), "It answered 503: It stops"),
    ],
)
def test_strange_answers_are_said(answer, error):
    client = Client("http://localhost:1")
    client._client = httpx2.Client(transport=httpx2.MockTransport(lambda request: answer))
    with pytest.raises(OSError, match=error):
        client.generate("a red circle", 1, 0)


def test_generate_on_the_command_line_draws_the_same_without_loading_a_model(live, tmp_path, fast, tiny, same_picture):
    path = tmp_path / "out.png"
    words = ["generate", "two red zebras", "--server", live.url, "--seed", "4", "--steps", "2", "--guidance", "1"]
    words += ["--no-plan", "--attempts", "1", "-o", str(path)]
    program = f"import sys; from blip3o_hf.cli import main; print(main({words!r})); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(path), "0", "False"]
    assert "never read 'zebras'" in done.stderr
    expected = tiny("two red zebras", generator=[torch.Generator().manual_seed(4)], **fast).images[0]
    assert same_picture(Image.open(path), expected, levels=1)


def test_adapters_are_the_servers_business(tmp_path, capsys):
    words = [
        "generate",
        "a cat",
        "--server",
        "http://localhost:1",
        "--lora",
        "me/style",
        "-o",
        str(tmp_path / "a.png"),
    ]
    assert main(words) == 2
    assert "--lora is for a model of this command" in capsys.readouterr().err


def test_the_page_knows_what_the_server_draws_with(served, tiny):
    assert served.name == "blip3o-tiny" and served.picture_size == (64, 64)
    assert all(value == tiny.config[name] for name, value in vars(served.config).items())


def test_the_page_draws_edits_and_tells_unknown_words_as_with_a_pipeline(served, tiny, tmp_path, same_picture):
    shown, own = (generate(pipe, "two red zebras", 2, SAMPLING)[0] for pipe in (served, tiny))
    assert [caption for _, caption in shown] == [caption for _, caption in own]
    assert all(same_picture(first, second, 1) for (first, _), (second, _) in zip(shown, own, strict=True))
    assert unknown_words(served, "two red zebras") == unknown_words(tiny, "two red zebras")
    path = tmp_path / "before.png"
    shown[0][0].save(path)
    first, second = (edit(pipe, "make the circles blue", [str(path)], SAMPLING) for pipe in (served, tiny))
    assert same_picture(first, second, 1)


def test_a_conversation_with_a_server_is_one_with_the_model(served, tiny, same_picture):
    turns = [("draw", "a red circle and a blue square"), ("ask", "what color is the circle?")]
    turns += [("edit", "make the circle green"), ("send", "describe the picture")]
    told, own = (Conversations(pipe) for pipe in (served, tiny))
    first, second = (), ()
    for kind, text in turns:
        first = told.turn(first, kind, text, [], SAMPLING)
        second = own.turn(second, kind, text, [], SAMPLING)
    said = [(each.role, each.text) for each in told.transcript(first)]
    assert said == [(each.role, each.text) for each in own.transcript(second)]
    assert all(same_picture(*pair, levels=1) for pair in zip(pictures(first), pictures(second), strict=True))
    assert len(pictures(first)) == 2


def test_a_turn_that_fails_leaves_the_conversation(served):
    conversations = Conversations(served)
    messages = conversations.turn((), "ask", "hello", [], SAMPLING)
    with pytest.raises(ValueError, match=r"a text|say something"):
        conversations.turn(messages, "ask", "", [], SAMPLING)
    assert len(conversations.turn(messages, "ask", "hello", [], SAMPLING)) == len(messages) + 2
