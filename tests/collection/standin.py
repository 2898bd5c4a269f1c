"""An OpenAI-compatible endpoint on the loopback: it draws, writes prompts, answers, and can be broken."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from blip3o_hf.collection.teachers import DrawingRequest
from blip3o_hf.shapes.teacher import ShapesTeacher

KEY = "secret-" + "k" * 30


class StandIn:
    """
    The server; a context manager. `faults` are statuses with which the next requests are answered, `say` answers chat
    messages, `draw` gives the picture of a prompt, `headers` are sent with all answers.
    """

    def __init__(self):
        self.bodies: list[tuple[str, dict]] = []
        self.keys: set[str | None] = set()
        self.faults: list[tuple[int, dict]] = []
        self.headers: dict[str, str] = {}
        self.num_answered = 0
        self.say = lambda text, body: "yes"
        self.draw = draw_shapes
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                stand_in.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.lock = threading.Lock()

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    @property
    def drawn(self) -> list[str]:
        """The prompts of all requests for pictures."""
        return [body["prompt"] for path, body in self.bodies if path.endswith("/images/generations")]

    def answer(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            self.bodies.append((handler.path, body))
            self.keys.add(handler.headers.get("Authorization"))
            status, content = self.faults.pop(0) if self.faults else (200, None)
        if content is None and status == 200:
            status, content = self.reply(handler.path, body)
        sent = content if isinstance(content, bytes) else json.dumps(content).encode()
        handler.send_response(status)
        for name, value in {**self.headers, "Content-Length": str(len(sent))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(sent)
        with self.lock:
            self.num_answered += 1

    def reply(self, path, body):
        return 200, self.content(path, body)

    def content(self, path, body):
        if path == "/v1/images/generations":
            return {"created": 0, "data": [self.draw(body["prompt"], body.get("seed", 0))]}
        said = body["messages"][-1]["content"]
        text = said if isinstance(said, str) else said[-1]["text"]
        return {"choices": [{"message": {"content": self.say(text, body)}, "finish_reason": "stop"}]}


def draw_shapes(prompt: str, seed: int) -> dict:
    """A picture by the teacher of the tiny world, as the images API gives it."""
    [(_, answer)] = ShapesTeacher({}).draw([DrawingRequest("", prompt, seed)])
    return {"b64_json": base64.b64encode(answer.data).decode(), "revised_prompt": f"{prompt}, plainly"}


def error(status: int, message: str, code: str = "") -> tuple[int, dict]:
    """An answer of an error."""
    return status, {"error": {"message": message, "code": code}}
