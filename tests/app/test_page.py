"""The page and the command that serves it."""

import socket
import sys
import types

import pytest

from blip3o_hf.cli import main


def fails(capsys, arguments, *texts):
    assert main(["app", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("blip3o-hf app: ") and error.count("\n") == 1
    for text in texts:
        assert text in error


def test_without_gradio_the_error_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    fails(capsys, [], "The app is a page of gradio. It is not installed", "pip install -e '.[demo]'")


def test_a_place_to_listen_is_checked_before_the_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", types.ModuleType("gradio"))
    fails(capsys, ["--port", "70000"], "--port must be a number from 1 to 65535. Got 70000")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        fails(capsys, ["--port", port], f"must be able to listen on 127.0.0.1, port {port}", "Choose another")


@pytest.fixture
def gradio():
    return pytest.importorskip("gradio", minversion="6")


@pytest.fixture
def build(gradio, pipeline):
    from blip3o_hf.app.page import build_page

    return lambda *arguments: build_page(pipeline, *arguments)


def labels(gradio, page):
    return [block.label for block in page.blocks.values() if isinstance(block, gradio.Tab)]


def test_reconstruct_is_there_with_a_target_encoder_only(gradio, build, pipeline):
    from blip3o_hf.pipelines.reconstruction import Blip3oReconstructionPipeline

    assert labels(gradio, build()) == ["Chat", "Generate", "Edit"]
    whole = build(Blip3oReconstructionPipeline(pipeline, None, None))
    assert labels(gradio, whole) == ["Chat", "Generate", "Edit", "Reconstruct"]


def test_requests_of_all_users_and_tabs_wait_in_one_line(build):
    actions = [action for action in build().fns.values() if action.name != "load_example"]
    model = [action for action in actions if action.concurrency_id == "model"]
    assert len(model) >= 9
    assert {action.concurrency_limit for action in model} == {1}
    assert {action.api_visibility for action in model} == {"private"}


def test_errors_reach_the_user_in_our_words(gradio, build):
    actions = {action.name: action.fn for action in build().fns.values()}
    with pytest.raises(gradio.Error, match=r"An edit needs a picture\. Got none"):
        actions["change"]("make it blue", None, 0, 2, 1.0)
    with pytest.raises(gradio.Error, match=r"Unknown kind of turn .*&lt;b&gt;"):  # the page takes HTML
        actions["turn"]((), {"text": "a circle", "files": []}, "<b>", False, 0, 2, 1.0)
