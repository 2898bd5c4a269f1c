"""A study on a server of the standard library: the page, its pictures, and answers that are on the disk at once."""

import json
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from filelock import FileLock, Timeout

from .answer_files import AnswerFiles
from .page import page_of
from .study import ANSWERS, Study

Refusal = Callable[[Iterable[tuple[bytes, bytes]]], str | None]
"""From the headers of a request to the reason why it is refused; `None` where it is not."""
MAX_BODY_BYTES = 4096
IDLE_SECONDS = 60
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}


class StudyServer(ThreadingHTTPServer):
    """
    Serves one study until `shutdown`; one process at a time may serve it.

    Args:
        study: as `Study.read` gives it.
        host: an address or a name of this machine.
        port: 0 for any that is free.
        refusal: decides by the headers whose requests are answered, as the app's guard does.

    Raises:
        OSError: when it cannot listen there, or another process serves the study.
    """

    daemon_threads = True

    def __init__(self, study: Study, host: str, port: int, refusal: Refusal):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.study, self.refusal = study, refusal
        self.answers = AnswerFiles(study)
        self.page = page_of(study, "server").encode()
        (study.folder / ANSWERS).mkdir(exist_ok=True)
        self._lock = FileLock(study.folder / ANSWERS / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise OSError(
                f"One process at a time may serve a study. {study.folder} is served already. Stop the other one."
            ) from error
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            self._lock.release()
            raise OSError(
                f"The study must be able to listen on {host}, port {port}. It cannot ({error}). Choose another with "
                f"--port or --host."
            ) from error

    def server_close(self) -> None:
        super().server_close()
        self._lock.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Browsers that go away in the middle of an answer are nothing to report; all else is reported."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One request each: no open connection outlives the server."""

    timeout = IDLE_SECONDS

    @property
    def study_server(self) -> StudyServer:
        assert isinstance(self.server, StudyServer)
        return self.server

    def do_GET(self) -> None:
        if self._is_refused():
            return
        if self.path == "/":
            return self._send(200, self.study_server.page, "text/html; charset=utf-8")
        kind, _, name = self.path[1:].partition("/")
        if kind == "images" and name in self.study_server.study.images:  # names of the study alone, and no paths
            content = self.study_server.study.image_path(name).read_bytes()
            return self._send(200, content, "image/png", "private, max-age=86400, immutable")
        if kind == ANSWERS:
            return self._answer(lambda: {"answers": [asdict(answer) for answer in self.study_server.answers.of(name)]})
        return self._say(404, "There is no such page.")

    def do_POST(self) -> None:
        if self._is_refused():
            return
        if self.path != f"/{ANSWERS}":
            return self._say(404, "There is no such page.")
        if self.headers.get_content_type() != "application/json":
            return self._say(415, "An answer must be JSON. The request has another type. Use the study's page.")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or not length.isascii():
            return self._say(411, "An answer must say its length. The request does not. Use the study's page.")
        if int(length[:10]) > MAX_BODY_BYTES:
            return self._say(413, f"An answer has at most {MAX_BODY_BYTES} bytes. Got {length[:10]}. Use the page.")
        body = self.rfile.read(int(length))
        self._answer(lambda: {"answered": self.study_server.answers.append(_mapping(body))})

    def _is_refused(self) -> bool:
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
        reason = self.study_server.refusal(headers)
        if reason is not None:
            self._say(403, reason)
        return reason is not None

    def _answer(self, work: Callable[[], dict[str, Any]]) -> None:
        try:
            content = work()
        except ValueError as error:
            return self._say(409, str(error))
        except OSError as error:
            return self._say(
                500, f"The answers must be readable and writable. They are not: {error.strerror or error}."
            )
        return self._send(200, json.dumps(content).encode(), "application/json")

    def _say(self, status: int, reason: str) -> None:
        self._send(status, json.dumps({"error": reason}).encode(), "application/json")

    def _send(self, status: int, content: bytes, kind: str, cache: str = "no-store") -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Cache-Control": cache}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def version_string(self) -> str:
        return "blip3o-hf"

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: the files of answers say what happened."""


def _mapping(body: bytes) -> dict[str, Any]:
    try:
        row = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"An answer must be JSON. It is not: {error}. Use the study's page.") from error
    if not isinstance(row, dict):
        raise ValueError(f"An answer must be a JSON mapping. Got {row!r:.60}. Use the study's page.")
    return row
