"""The server as browsers and others meet it: answers are kept, and nothing but the study is given out."""

import http.client
import json
import threading
from functools import partial

import pytest
from tests.evaluation.human_study.test_answers import row_of

from blip3o_hf.evaluation.human_study.answers import answers_of
from blip3o_hf.evaluation.human_study.order import questions_of
from blip3o_hf.evaluation.human_study.serving import StudyServer
from blip3o_hf.serving.guard import hosts_of_machine, refusal

JSON = {"Content-Type": "application/json"}


class Running:
    """A server in a thread."""

    def __init__(self, study):
        self.server = StudyServer(study, "127.0.0.1", 0, partial(refusal, hosts=hosts_of_machine()))
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def ask(self, method, path, body=None, headers=None):
        """Status, headers and content of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=10)
        content = json.dumps(body) if isinstance(body, dict) else body
        connection.request(method, path, content, {**(JSON if body is not None else {}), **(headers or {})})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, response.headers, content

    def get(self, path, **headers):
        return self.ask("GET", path, headers=headers)

    def post(self, row):
        status, _, content = self.ask("POST", "/answers", row)
        return status, json.loads(content)

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def running(study):
    running = Running(study)
    yield running
    running.close()


def test_answers_are_kept_taken_back_and_gone_on_with(study, running):
    questions = questions_of(study, "ann")
    for number, question in enumerate(questions[:3], start=1):
        assert running.post(row_of(study, "ann", question)) == (200, {"answered": number})
    assert running.post(row_of(study, "ann", questions[2], "undo")) == (200, {"answered": 2})
    running.close()
    again = Running(study)
    try:
        told = json.loads(again.get("/answers/ann")[2])["answers"]
        assert [(row["pair"], row["choice"]) for row in told] == [(q.pair, "left") for q in questions[:2]]
        assert json.loads(again.get("/answers/bob")[2]) == {"answers": []}
        assert again.post(row_of(study, "ann", questions[2], "right")) == (200, {"answered": 3})
    finally:
        again.close()
    answers, notes = answers_of(study, [])
    assert len(answers) == 3 and notes == []
    assert sorted(path.name for path in (study.folder / "answers").glob("[!.]*")) == ["ann.jsonl"]


def test_many_raters_at_once_lose_nothing(study, running):
    def rate(name):
        for question in questions_of(study, name)[:8]:
            assert running.post(row_of(study, name, question))[0] == 200

    threads = [threading.Thread(target=rate, args=(f"rater{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers_of(study, [])[0]) == 48


def test_the_page_and_its_pictures(study, running):
    status, headers, page = running.get("/")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8" and study.id.encode() in page
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
    name = min(study.images)
    status, headers, content = running.get(f"/images/{name}")
    assert status == 200 and headers["Content-Type"] == "image/png" and "Last-Modified" not in headers
    assert content == study.image_path(name).read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "/key.json",
        "/study.json",
        "/images/../key.json",
        "/images/..%2Fkey.json",
        "/images//etc/passwd",
        "/images/",
        "/images",
        "/answers",
        "/answers.jsonl",
    ],
)
def test_nothing_else_is_given_out(running, path):
    status, _, content = running.get(path)
    assert status in (404, 409) and b"secret" not in content


def test_names_of_raters_are_no_paths(study, running):
    (study.folder / "outside.jsonl").write_text("")
    for name in ("../outside", "..%2Foutside", "Ann", ""):
        assert running.get(f"/answers/{name}")[0] == 409
    row = row_of(study, "ann", questions_of(study, "ann")[0])
    status, content = running.post({**row, "rater": "../outside"})
    assert status == 409 and "A rater's name must be" in content["error"]


def test_other_hosts_and_pages_of_other_sites_are_refused(study, running):
    row = row_of(study, "ann", questions_of(study, "ann")[0])
    for headers, told in (
        ({"Host": "evil.example"}, "--allow-host evil.example"),
        ({"Origin": "http://evil.example"}, "from a page of 'http://evil.example'"),
        ({"Origin": "null"}, "from a page of 'null'"),
    ):
        for method, path, body in (("GET", "/answers/ann", None), ("GET", "/", None), ("POST", "/answers", row)):
            status, _, content = running.ask(method, path, body, headers)
            assert status == 403 and told in json.loads(content)["error"]
    own = {"Origin": f"http://127.0.0.1:{running.server.server_port}"}
    assert running.ask("POST", "/answers", row, own)[0] == 200


def test_requests_that_are_no_answers_are_refused(study, running):
    row = row_of(study, "ann", questions_of(study, "ann")[0])
    assert running.ask("POST", "/answers", row, {"Content-Type": "text/plain"})[0] == 415
    assert running.ask("POST", "/answers", "x" * 5000)[0] == 413
    assert running.ask("POST", "/other", row)[0] == 404
    assert running.ask("POST", "/answers", iter([b"{}"]))[0] == 411  # chunked, of no stated length
    assert running.ask("DELETE", "/answers/ann")[0] == 501
    for body, told in (
        ("{", "An answer must be JSON"),
        ("[]", "a JSON mapping"),
        ({**row, "choice": "tie"}, "Unknown choice 'tie'"),
        ({**row, "study": "other"}, "Answers must be of this study"),
        ({**row, "left": row["right"], "right": row["left"]}, "The pictures must stand as the study has them"),
    ):
        status, content = running.post(body)
        assert status == 409 and told in content["error"]
    assert not (study.folder / "answers" / "ann.jsonl").exists()


def test_one_server_at_a_time(study, running):
    with pytest.raises(OSError, match="One process at a time may serve a study"):
        Running(study)


def test_a_port_that_is_taken_is_told(make, running):
    other, port = make("other", seed=8)[0], running.server.server_port
    for wanted in (port, 70000):
        with pytest.raises(OSError, match=f"listen on 127.0.0.1, port {wanted}. It cannot"):
            StudyServer(other, "127.0.0.1", wanted, lambda headers: None)
    Running(other).close()  # the lock was given back
