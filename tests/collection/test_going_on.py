"""What stops a run, and what does not: rejected requests, other settings, interruptions, half characters."""

import sys
import types
from concurrent.futures import wait

import pytest
from tests.collection.standin import draw_shapes, error
from tests.collection.test_collect import dropped, manifests, prompts, tars

from blip3o_hf.cli import main
from blip3o_hf.collection.chat_writer import prompts_in
from blip3o_hf.data.sources import open_source
from blip3o_hf.files import written_whole

# Requests that an endpoint cannot answer


def rejecting(endpoint, *seeds):
    """Let the endpoint reject these requests, whatever it is asked besides."""
    original = endpoint.reply
    endpoint.reply = lambda path, body: (
        error(413, "too long for this model") if body.get("seed") in seeds else original(path, body)
    )


@pytest.mark.parametrize("at_once", ["1", "8"])
def test_a_request_that_is_always_rejected_stops_nothing_else(collect, endpoint, tmp_path, at_once):
    rejecting(endpoint, 0, 1, 13)
    assert collect(tmp_path / "out", "--at-once", at_once) == 0
    names = [each["id"] for each in prompts(tmp_path / "out")]
    problem = ("rejected by the endpoint", "too long for this model")
    assert dropped(tmp_path / "out") == {names[seed]: problem for seed in (0, 1, 13)}
    assert [one["pictures_drawn"] for one in manifests(tmp_path / "out")] == [6, 7, 4] and len(endpoint.drawn) == 20


def test_rejected_requests_alone_are_an_error_that_names_one(collect, endpoint, tmp_path, capsys):
    rejecting(endpoint, *range(20))
    assert collect(tmp_path / "out", "--at-once", "2") == 2
    said = capsys.readouterr().err
    assert "It answered 413: too long for this model." in said
    assert f"It was asked for prompt {prompts(tmp_path / 'out')[0]['id']}." in said
    assert 8 <= len(endpoint.drawn) <= 9 and not list((tmp_path / "out" / "work").iterdir())


def test_the_last_request_is_rejected_in_a_run_of_its_own(collect, endpoint, tmp_path):
    rejecting(endpoint, 3)
    assert collect(tmp_path / "out", "--price", "1", "--budget", "3", "--at-once", "1", number=4) == 1
    assert collect(tmp_path / "out", "--at-once", "1", number=4) == 0
    assert list(dropped(tmp_path / "out")) == [prompts(tmp_path / "out")[3]["id"]]


def test_a_check_that_rejects_or_refuses_a_picture_drops_it(collect, endpoint, tmp_path):
    answers, original = iter([None, error(400, "too small"), error(400, "no", "content_filter")]), endpoint.reply

    def reply(path, body):
        return (path.endswith("/chat/completions") and next(answers, None)) or original(path, body)

    endpoint.reply = reply
    assert collect(tmp_path / "out", "--check", "openai:judge", number=4) == 0
    assert [detail for _, detail in dropped(tmp_path / "out").values()] == [
        "rejected by the endpoint: too small",
        "refused: no",
    ]


# Settings


def test_settings_of_the_teacher_are_free_until_something_is_drawn(collect, endpoint, tmp_path, capsys):
    endpoint.draw = lambda prompt, seed: {"url": "http://127.0.0.1/picture.png"}
    assert collect(tmp_path / "out", "--at-once", "1") == 2
    assert "Add `--set response_format=b64_json`." in capsys.readouterr().err
    endpoint.draw = draw_shapes
    assert collect(tmp_path / "out", "--set", "response_format=b64_json") == 0
    assert collect(tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "`teacher.options.response_format` was 'b64_json', and is now not set." in said


def test_long_settings_are_shown_where_they_differ(collect, tmp_path, capsys):
    terms = "terms " * 40
    assert collect(tmp_path / "out", "--terms", terms + "of May", number=2) == 0
    assert collect(tmp_path / "out", "--terms", terms + "of June", number=2) == 2
    said = capsys.readouterr().err
    assert "terms of May', and is now ..." in said and "terms of June'. Set it back" in said


def test_the_address_and_the_number_of_requests_may_change(collect, endpoint, tmp_path):
    assert collect(tmp_path / "whole") == 0
    assert collect(tmp_path / "out", "--price", "1", "--budget", "11") == 1
    other = endpoint.base_url.replace("127.0.0.1", "localhost")
    assert collect(tmp_path / "out", "--base-url", other, "--at-once", "3") == 0
    assert tars(tmp_path / "out") == tars(tmp_path / "whole")


# Interruptions


def interrupting(monkeypatch, number):
    """Ctrl-C while the command waits, for the given time of waiting."""
    calls = []

    def interrupted(*arguments, **further):
        calls.append(None)
        if len(calls) == number:
            raise KeyboardInterrupt
        return wait(*arguments, **further)

    monkeypatch.setattr("blip3o_hf.collection.asking.wait", interrupted)


def test_answers_that_are_on_their_way_are_kept_after_an_interruption(collect, endpoint, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupting(patch, 1)
        assert collect(tmp_path / "out", "--at-once", "4") == 130
    assert len(endpoint.drawn) == 4 == len(list((tmp_path / "out" / "work").iterdir()))
    assert collect(tmp_path / "out") == 0
    assert len(endpoint.drawn) == 20


def test_an_interruption_ends_the_attempts(collect, endpoint, tmp_path, monkeypatch):
    endpoint.faults = [error(503, "busy")] * 9
    interrupting(monkeypatch, 1)
    assert collect(tmp_path / "out", "--at-once", "1") == 130
    assert len(endpoint.drawn) == 1


def test_a_run_that_was_killed_while_it_began_does_not_block_its_folder(collect, tmp_path):
    (tmp_path / "out").mkdir()
    begun = written_whole(tmp_path / "out" / "collection.json")
    begun.__enter__()  # what a killed process leaves
    assert [path.name[:9] for path in (tmp_path / "out").iterdir()] == [".partial-"]
    assert collect(tmp_path / "out", number=2) == 0
    assert not list((tmp_path / "out").glob(".partial-*"))


def test_each_picture_is_checked_once_also_in_parts(collect, tmp_path, monkeypatch):
    asked, module = [], types.ModuleType("own_check")
    module.check = lambda images, texts: asked.extend(texts) or [1.0] * len(texts)
    monkeypatch.setitem(sys.modules, "own_check", module)
    words = ["--check", "own_check:check", "--price", "1", "--budget"]
    assert [collect(tmp_path / "out", *words, budget, number=8) for budget in ("3", "5", "8")] == [1, 1, 0]
    assert sorted(asked) == sorted(each["text"] for each in prompts(tmp_path / "out"))
    assert not list((tmp_path / "out" / "work").iterdir())


# Half characters, and nothing left


def test_half_characters_of_teachers_checks_and_refusals_are_replaced(collect, endpoint, tmp_path):
    endpoint.draw = lambda prompt, seed: {**draw_shapes(prompt, seed), "revised_prompt": "a \ud83d b"}
    endpoint.faults = [(200, None), error(400, "not \ud83d", "moderation")]
    said = iter(["yes", "I \ud83d"])
    endpoint.say = lambda text, body: next(said, "yes")
    assert collect(tmp_path / "out", "--at-once", "1", "--check", "openai:judge", number=4) == 0
    names = [each["id"] for each in prompts(tmp_path / "out")]
    assert dropped(tmp_path / "out") == {
        names[1]: ("refused by the teacher", "not ?"),
        names[2]: ("the check said neither yes nor no", "I ?"),
    }
    assert open_source({"path": str(tmp_path / "out")}).content(0)["revised_prompt"] == "a ? b"


def test_half_characters_of_prompts_are_replaced_or_dropped(tmp_path):
    assert prompts_in('{"prompts": ["a \\ud83d b"]}') == ["a ? b"]
    (tmp_path / "p.jsonl").write_text('{"prompt": "a \\ud83d b"}\n{"prompt": "a dog", "category": "\\ud83d"}\n')
    assert main(["collect", str(tmp_path / "out"), "--prompts", str(tmp_path / "p.jsonl"), "--prompts-only"]) == 0
    assert prompts(tmp_path / "out") == [{"id": "000000", "category": "?", "text": "a dog"}]
    assert '"text": "a ? b"' in (tmp_path / "out" / "dropped_prompts.jsonl").read_text()


def test_a_collection_of_nothing_is_no_success(collect, endpoint, tmp_path, capsys):
    endpoint.draw = lambda prompt, seed: {"b64_json": ""}
    assert collect(tmp_path / "out", number=2) == 1
    assert "0 pairs of 2 prompts" in capsys.readouterr().out
