"""A judge behind an endpoint on the loopback: probabilities where it tells them, words otherwise, errors as errors."""

import base64
import functools
import io
import logging
import math
import threading

import httpx2
import pytest
from PIL import Image
from tests.collection.standin import KEY, StandIn, error

from blip3o_hf.preference import judge_endpoint
from blip3o_hf.preference.judge_endpoint import EndpointJudge, share_of_yes
from blip3o_hf.rewards.manager import RewardManager

CLIENT = functools.partial(httpx2.Client, verify=httpx2.create_ssl_context())


class Judge(StandIn):
    """`replies` are answers by the question; a text, or tokens with their probabilities, or a whole choice."""

    def __init__(self):
        super().__init__()
        self.replies = {}
        self.waiting, self.most_waiting = 0, 0
        self.counting = threading.Lock()

    def content(self, path, body):
        assert path == "/v1/chat/completions"
        reply = self.replies[body["messages"][0]["content"][1]["text"]]
        if isinstance(reply, str):
            reply = {"message": {"content": reply}, "logprobs": None}
        elif "message" not in reply:
            tokens = [{"token": token, "logprob": math.log(value)} for token, value in reply.items()]
            reply = {"message": {"content": "?"}, "logprobs": {"content": [{"top_logprobs": tokens}]}}
        return {"choices": [reply]}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("blip3o_hf.collection.endpoint.httpx2.Client", CLIENT)
    monkeypatch.setattr("blip3o_hf.collection.endpoint.pause", lambda seconds, stop: stop.is_set())
    with Judge() as judge:
        yield judge


@pytest.fixture
def make(server):
    """`make(**settings)`: a judge whose question is the prompt alone."""
    return functools.partial(EndpointJudge, server.base_url, "judge", KEY, question="{prompt}")


def test_probabilities_and_words_are_read(server, make, make_image):
    server.replies = {
        "a": {"Yes": 0.5, " yes": 0.1, "No": 0.2, "Maybe": 0.1},
        "b": {"Maybe": 0.9, "No": 0.01},
        "c": "Yes, it does.",
        "d": "**No**",
        "e": "It shows a cat.",
    }
    scores = RewardManager([make()])(list("abcde"), [make_image(seed) for seed in range(5)], {"id": [0] * 5})
    assert scores.names == ("endpoint_judge",)
    assert scores.values[:, 0].tolist() == pytest.approx([0.75, math.nan, 1, 0, math.nan], nan_ok=True)
    assert server.keys == {f"Bearer {KEY}"}


def test_a_request_holds_the_picture_and_the_options(server, make, make_image):
    server.replies = {"a": "yes"}
    make(options={"max_tokens": None, "max_completion_tokens": 9})(["a"], [make_image(3)])
    [(_, body)] = server.bodies
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    kind, _, data = url.partition(",")
    assert kind == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == make_image(3).tobytes()
    assert (body["logprobs"], body["top_logprobs"], body["temperature"]) == (True, 20, 0)
    assert body["max_completion_tokens"] == 9 and "max_tokens" not in body


def test_questions_of_a_picture_give_their_mean(server, make, make_image):
    server.replies = {"is it red?": {"yes": 0.9, "no": 0.1}, "is it round?": {"yes": 0.5, "no": 0.5}, "b": "no"}
    questions = [["is it red?", "is it round?"], None]
    assert make()(["a", "b"], [make_image()] * 2, questions=questions) == pytest.approx([0.7, 0.0])


def test_only_so_many_requests_wait_at_once_and_answers_keep_their_order(server, make, make_image):
    texts = [f"q{number}" for number in range(8)]
    server.replies = {text: {"yes": 0.1 * (number + 1), "no": 0.1} for number, text in enumerate(texts)}
    plain, together = server.content, threading.Barrier(2)

    def content(path, body):
        with server.counting:
            server.waiting += 1
            server.most_waiting = max(server.most_waiting, server.waiting)
        together.wait(5)  # two at once, and never more
        answer = plain(path, body)
        with server.counting:
            server.waiting -= 1
        return answer

    server.content = content
    scores = make(at_once=2)(texts, [make_image()] * 8)
    assert scores == pytest.approx([(n + 1) / (n + 2) for n in range(8)]) and server.most_waiting == 2


def test_a_request_is_made_again_and_then_an_error(server, make, make_image, caplog):
    server.replies = {"a": "yes"}
    server.faults = [error(429, "slow down"), error(500, "oops")]
    assert make()(["a"], [make_image()]) == [1.0]
    server.faults = [error(500, f"oops, {KEY}")] * 3
    caplog.set_level(logging.DEBUG)
    with pytest.raises(OSError, match=r"asked 3 times, and at last answered 500: oops, \[key\]") as caught:
        RewardManager([make(num_attempts=3)])(["a"], [make_image()])
    assert "The reward endpoint_judge raised the OSError that follows." in caplog.text
    assert KEY not in caplog.text + str(caught.value) + repr(make())


def test_after_an_error_nothing_more_is_asked(server, make, make_image):
    server.replies = dict.fromkeys("abcdefgh", "yes")
    server.faults = [error(401, "no such key")]
    with pytest.raises(OSError, match="answered 401: no such key"):
        make(at_once=1)(list("abcdefgh"), [make_image()] * 8)
    assert len(server.bodies) == 1


def test_a_refusal_is_none_and_said(server, make, make_image, caplog):
    server.replies = {"a": "yes", "b": {"message": {"content": None, "refusal": "I cannot judge this."}}}
    assert make()(["a", "b"], [make_image()] * 2) == [1.0, None]
    server.faults = [error(400, "against the rules", "content_policy_violation")]
    assert make()(["a"], [make_image()]) == [None]
    assert "endpoint_judge refused to judge 1 of 2 pictures: I cannot judge this." in caplog.text
    assert "1 of 1 pictures: against the rules" in caplog.text


@pytest.mark.parametrize(
    "choice",
    [
        {"message": "yes"},
        {"message": None},
        {"message": {"content": "yes"}, "logprobs": {"content": [{"top_logprobs": [{"token": "yes"}]}]}},
        {
            "message": {"content": "yes"},
            "logprobs": {"content": [{"top_logprobs": [{"token": "yes", "logprob": math.nan}]}]},
        },
    ],
)
def test_what_is_no_answer_of_a_chat_model_is_an_error(server, make, make_image, choice):
    server.replies = {"a": choice}
    with pytest.raises(OSError, match=r"must answer with choices, a message and tokens\. http://127"):
        make()(["a"], [make_image()])


def test_a_share_needs_mass():
    assert share_of_yes([("yes", math.log(0.03)), ("no", math.log(0.03))]) == pytest.approx(0.5)
    assert share_of_yes([("yes", math.log(0.02)), ("no", math.log(0.02))]) is None
    assert share_of_yes([("Yes.", 0.0), ("not", 0.0), ("yesterday", 0.0), ("", 0.0)]) == 1.0


def test_the_judge_of_the_environment(server, make_image, monkeypatch):
    manager = RewardManager(["blip3o_hf.preference.judge_endpoint:endpoint_judge"])
    assert manager.names == ("endpoint_judge",)
    for name in judge_endpoint.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r"BLIP3O_JUDGE_URL or BLIP3O_JUDGE_MODEL is not set\. Set both"):
        manager(["a cat"], [make_image()])
    for name, value in zip(judge_endpoint.VARIABLES, (server.base_url, "judge", KEY), strict=True):
        monkeypatch.setenv(name, value)
    server.replies = {'Does this figure show "a cat"? Please answer yes or no.': "yes"}
    assert manager(["a cat"], [make_image()]).total.tolist() == [1.0]
    assert server.keys == {f"Bearer {KEY}"} and server.bodies[0][1]["model"] == "judge"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "localhost"}, "must be an address"),
        ({"key": "two words"}, "A key must be printable ASCII"),
        ({"at_once": 0}, "`at_once` must be a whole number"),
        ({"question": "yes or no?"}, "must hold {prompt}"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EndpointJudge(**{"base_url": "http://localhost/v1", "model": "judge", **settings})
