"""Requests as nobody should send them, made from a seed: bytes for a socket, each with what it is."""

import base64
import binascii
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image

MAX_BODY = 200_000
BODY_SECONDS = 0.5
KEY = "right"
IMAGES, EDITS, VARIATIONS = (f"/v1/images/{name}" for name in ("generations", "edits", "variations"))
CHAT = "/v1/chat/completions"
FAST = {"num_inference_steps": 1, "guidance_scale": 1, "plan": False, "num_attempts": 1}


@dataclass(frozen=True)
class Hostile:
    """
    A request.

    Args:
        name: what is wrong with it.
        parts: bytes that are sent one after another.
        pause: seconds between them.
        is_left: whether the client goes away without waiting for the answer.
        needs_key: whether it is for the server that has a key.
        is_http: whether it is HTTP at all; what is not is answered below this package, in plain text.
    """

    name: str
    parts: tuple[bytes, ...]
    pause: float = 0.0
    is_left: bool = False
    needs_key: bool = False
    is_http: bool = True


def http(path: str, body: bytes = b"", method: str = "POST", **headers: str) -> bytes:
    """A whole request; a header of the value `None` is left out."""
    lines = {"Host": "127.0.0.1", "Content-Length": str(len(body)), "Connection": "close"}
    lines |= {name.replace("_", "-").title(): value for name, value in headers.items()}
    head = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in lines.items() if value is not None)]
    return "\r\n".join([*head, "", ""]).encode("utf-8", "surrogateescape") + body


def in_json(path: str, **fields: object) -> bytes:
    base = {"prompt": "a circle", **FAST} if path == IMAGES else {"messages": [{"role": "user", "content": "hi"}]}
    return http(path, json.dumps({**base, **fields}).encode(), content_type="application/json")


def in_form(path: str, *parts: tuple[str, bytes], **headers: str) -> bytes:
    """A form of parts, each with its disposition."""
    body = b"".join(
        b"--b\r\nContent-Disposition: form-data; "
        + head.encode("utf-8", "surrogateescape")
        + b"\r\n\r\n"
        + content
        + b"\r\n"
        for head, content in parts
    )
    return http(path, body + b"--b--\r\n", **{"content_type": "multipart/form-data; boundary=b", **headers})


# Wrong values

JUNK: tuple[object, ...] = (
    True, [], {}, "", "\ud800", "NaN", -1, 0.5, 10**400, -(10**30), 1e308, [[[[]]]], {"a": {"b": []}},
    "x" * 40_000, "../../etc/passwd", "' OR 1=1 --", "\x00", "%s%n{0.__class__}", [None], "\u202e\u0000",
)  # fmt: skip
TEXTS, NUMBERS = ("prompt",), ("guidance_scale", "decoder_guidance_scale")
WHOLE = ("n", "seed", "num_inference_steps", "num_attempts", "output_compression", "partial_images")
TRUTHS = ("plan", "stream")
CHOICES = ("output_format", "response_format", "background", "size")
OF_CHATS = ("messages", "stop", "modalities", "stream_options", "response_format", "max_tokens", "temperature")
OF_CHATS += ("top_p", "n", "seed", "stream", "tools", "logit_bias", "num_inference_steps", "model")


def is_right(name: str, value: object) -> bool:
    """Whether a piece of junk is good enough for a field after all."""
    if name == "prompt":
        return isinstance(value, str) and value.strip() != "" and value != "\ud800" and len(value) < 1000
    if name in NUMBERS or name in ("temperature", "top_p"):
        return value == 0.5
    if name in TRUTHS:
        return value is True
    if name == "stop":
        return value == [] or (isinstance(value, str) and value not in ("", "\ud800") and len(value) <= 100)
    if name == "stream_options":
        return isinstance(value, dict)
    return (name, value) in (
        ("tools", []),
        ("tools", {}),
        ("logit_bias", {}),
        ("logit_bias", []),
    )


def wrong_value(rng: random.Random) -> Hostile:
    path, names = rng.choice([(IMAGES, (*TEXTS, *NUMBERS, *WHOLE, *TRUTHS, *CHOICES, "model")), (CHAT, OF_CHATS)])
    name = rng.choice(names)
    value = rng.choice([value for value in JUNK if not is_right(name, value)])
    return Hostile(f"{path} {name}={value!r:.40}", (in_json(path, **{name: value}),))


def wrong_value_of_form(rng: random.Random) -> Hostile:
    name = rng.choice((*NUMBERS, *WHOLE, *TRUTHS, *CHOICES, "model"))
    value = rng.choice(["--5", "", "1e999", "nan", "0x10", "\x00", "é" * 100, "9" * 500, "[1]"])
    form = in_form(EDITS, image("a.png"), ('name="prompt"', b"a"), (f'name="{name}"', value.encode()))
    return Hostile(f"form {name}={value[:20]!r}", (form,))


def unknown_field(rng: random.Random) -> Hostile:
    name = rng.choice(["image", "__proto__", "\ud800", "a" * 5000, "../x", "", "lora", "extra_params", "\x00", "N"])
    return Hostile(f"unknown field {name[:20]!r}", (in_json(rng.choice((IMAGES, CHAT)), **{name: 1}),))


def wrong_json(rng: random.Random) -> Hostile:
    bodies = [
        b"", b"{", b"[]", b"1", b'"a"', b"null", b'{"prompt": NaN}', b'{"prompt": "a", "seed": Infinity}',
        b"\xff\xfe\x00",
        b'{"prompt": "a",}', b"{'prompt': 'a'}", b'{"prompt": "\xc3\x28"}', b"[" * 100_000, b'{"a":' * 50_000,
        b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}", b'{"prompt": "a", "seed": ' + b"1" * 5000 + b"}",
        b'{"prompt": "\\ud800"}', b"\x00" * 100, b"prompt=a&n=1", rng.randbytes(200),
        b'{"prompt": "a"} {"prompt": "b"}',
    ]  # fmt: skip
    body = rng.choice(bodies)
    kind = rng.choice(["application/json", "text/plain", "application/xml", "\x80\xff", "a" * 3000, ""])
    kind = kind.encode("utf-8").decode("utf-8", "surrogateescape")
    return Hostile(f"body {body[:20]!r}", (http(rng.choice((IMAGES, CHAT)), body, content_type=kind),))


def wrong_messages(rng: random.Random) -> Hostile:
    contents = [
        None, 1, [], {}, [1], [{}], [{"type": "text"}], [{"type": "text", "text": 1}], [{"type": "image_url"}], " ",
        [{"type": "image_url", "image_url": []}], [{"type": "image_url", "image_url": {"url": {}}}], "\ud800",
        [{"type": "input_audio", "input_audio": {}}], "what is <|image_pad|>?", "x" * 32_001, "circle " * 2000,
        [{"type": ["text"], "text": "a"}], [{"type": "file", "file": {"file_id": "/etc/passwd"}}],
    ]  # fmt: skip
    messages = rng.choice(
        [
            [{"role": "user", "content": rng.choice(contents)}],
            [{"role": "user", "content": rng.choice(contents)}],
            [{"role": rng.choice(["tool", "", 1, None, ["user"], "USER"]), "content": "a"}],
            [{"role": "user", "content": "a"}] * 1001,
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            [rng.choice([1, None, "a", []])],
            {"role": "user", "content": "a"},
        ]
    )
    return Hostile(f"messages {messages!r:.50}", (in_json(CHAT, messages=messages),))


# Pictures


def png(width: int = 8, height: int = 8) -> bytes:
    """A picture of 8 x 8 pixels, whose head says another size."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = binascii.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def image(name: str, data: bytes | None = None) -> tuple[str, bytes]:
    return f'name="image"; filename="{name}"', png() if data is None else data


def wrong_picture(rng: random.Random) -> Hostile:
    noise = png()[:8] + rng.randbytes(100)
    data = rng.choice(
        [
            b"", b"a", noise, png(60_000, 60_000), png(6_000, 6_000), png(8000, 8), png(0, 8),
            png()[: rng.randrange(8, 45)],
            b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
            b"GIF89a" + b"\xff" * 20,
            b"%!PS\n(/etc/passwd) run", b"BM" + b"\xff" * 60, b"II*\x00" + b"\xff" * 40,
            b"\xff\xd8\xff" + rng.randbytes(50),
            b"RIFF\xff\xff\xff\xffWEBPVP8L" + rng.randbytes(30), b"PK\x03\x04" + bytes(60),
        ]
    )  # fmt: skip
    if rng.random() < 0.4:
        url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what?"}]
        return Hostile("picture in a chat", (in_json(CHAT, messages=[{"role": "user", "content": parts}]),))
    name = rng.choice(
        ["a.png", "../../../etc/passwd", "/etc/passwd", "a\x00.png", "x" * 3000, "C:\\a.png", "é\udcff.png"]
    )
    form = in_form(rng.choice((EDITS, VARIATIONS)), image(name, data), ('name="prompt"', b"a"))
    return Hostile(f"picture {data[:12]!r} called {name[:20]!r}", (form,))


def wrong_address(rng: random.Random) -> Hostile:
    url = rng.choice(
        [
            "http://127.0.0.1/", "https://127.0.0.1/", "https://localhost/", "https://[::1]/", "https://0/",
            "https://2130706433/",
            "https://169.254.169.254/latest/meta-data/", "https://[::ffff:127.0.0.1]/", "https://[fe80::1]/",
            "ftp://1.1.1.1/",
            "https://10.0.0.1/a.png", "file:///etc/passwd", "/etc/passwd", "https://user:password@127.0.0.1/",
            "https://127.0.0.1:22/",
            "https://[::1/", "https://127.0.0.1/\r\nX: y", "javascript:alert(1)", "data:text/html,hi",
            "data:;base64,%%%", "",
            "data:image/png;base64," + "A" * 1001, "https://" + "a" * 300 + ".example/",
            "https://192.168.0.1/" + "a/" * 500,
        ]
    )  # fmt: skip
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what?"}]
    return Hostile(f"picture at {url[:40]}", (in_json(CHAT, messages=[{"role": "user", "content": parts}]),))


def wrong_form(rng: random.Random) -> Hostile:
    path, prompt = rng.choice((EDITS, VARIATIONS)), ('name="prompt"', b"a")
    name, request = rng.choice(
        [
            ("no file", in_form(path, prompt)),
            ("no boundary", in_form(path, image("a"), content_type="multipart/form-data")),
            ("another boundary", in_form(path, image("a"), content_type="multipart/form-data; boundary=c")),
            ("a long boundary", in_form(path, image("a"), content_type="multipart/form-data; boundary=" + "b" * 1000)),
            ("no end", http(path, b"--b\r\nContent-Disp", content_type="multipart/form-data; boundary=b")),
            ("no head", http(path, b"--b\r\n\r\na\r\n--b--", content_type="multipart/form-data; boundary=b")),
            ("noise", http(path, rng.randbytes(300), content_type="multipart/form-data; boundary=b")),
            ("no name", in_form(path, ('filename="a"', png()))),
            ("many files", in_form(path, *[image(str(number)) for number in range(17)])),
            ("many fields", in_form(path, image("a"), *[(f'name="a{number}"', b"") for number in range(101)])),
            ("JSON", http(path, b'{"prompt": "a"}', content_type="application/json")),
            ("an URL's form", http(path, b"prompt=a", content_type="application/x-www-form-urlencoded")),
            ("no type", http(path, b"a")),
            ("a file as a field", in_form(EDITS, image("a"), ('name="prompt"; filename="b"', b"a"))),
            ("a mask", in_form(EDITS, image("a"), prompt, ('name="mask"; filename="b"', png()))),
            ("an image that is none", in_form(EDITS, prompt, ('name="image"', png()))),
            ("no prompt", in_form(EDITS, image("a"))),
            *(
                (f"the character set {name}", in_form(
                    path, ('name="a..b"', b"a..b"), content_type=f"multipart/form-data; boundary=b; charset={name}"
                ))
                for name in ("undefined", "idna", "zlib", "none")
            ),
        ]
    )  # fmt: skip
    return Hostile(f"form with {name}", (request,))


# Paths, hosts and keys


def wrong_path(rng: random.Random) -> Hostile:
    path = rng.choice(
        [
            "/", "//", "/v1", "/v1/", "/v1/images/generations/", "/v1/images/../images/edits/x", "/v1/files", "/docs",
            "/openapi.json",
            "/%2e%2e/%2e%2e/etc/passwd", "/../../etc/passwd", "/static/../../../etc/passwd",
            "/v1/models/../../../etc/passwd",
            "/v1/models/%00", "/v1/models/" + "a" * 5000, "/%ff%fe", "/.git/config", "/v1/models/%ED%A0%80",
            "/v1/models/x?model=y",
            "/health/../v1/x", "/v1/images/generations%2f", "/v1/embeddings", "/?url=file:///etc/passwd",
            "/%0d%0aX-A:%20b",
        ]
    )  # fmt: skip
    return Hostile(f"path {path[:40]}", (http(path, method=rng.choice(("GET", "GET", "POST"))),))


def wrong_method(rng: random.Random) -> Hostile:
    path, methods = rng.choice(
        [
            (rng.choice((IMAGES, EDITS, CHAT)), ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW")),
            (rng.choice(("/health", "/metrics", "/v1/models")), ("POST", "PUT", "DELETE", "OPTIONS", "PROPFIND")),
        ]
    )
    method = rng.choice(methods)
    return Hostile(f"{method} {path}", (http(path, method=method),))


def wrong_host(rng: random.Random) -> Hostile:
    host = rng.choice(["evil.example", "localhost.evil.example", "", "[::1", "127.0.0.1.nip.io", "\x80", "a" * 2000])
    headers = rng.choice([{"host": host}, {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "//["}])
    return Hostile(f"host {headers!r:.40}", (http(rng.choice((CHAT, "/health")), b"{}", **headers),))


def wrong_key(rng: random.Random) -> Hostile:
    said = rng.choice(
        [None, "", "Bearer", "Bearer wrong", f"Bearer {KEY}x", f"Basic {KEY}", KEY, "Bearer \x80", "B" * 5000]
    )
    path = rng.choice((IMAGES, EDITS, CHAT, "/v1/models", "/", "/v1/models/../health"))
    headers = {} if said is None else {"authorization": said}
    return Hostile(f"key {said!r:.30}", (http(path, b"{}", **headers),), needs_key=True)


# Bodies, and clients that go


def large_body(rng: random.Random) -> Hostile:
    if rng.random() < 0.5:
        head = http(rng.choice((IMAGES, EDITS, CHAT)), content_length=str(rng.choice((MAX_BODY + 1, 10**12, 10**19))))
        return Hostile("a body that says it is too large", (head,))
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    head = http(rng.choice((IMAGES, CHAT)), content_length=None, transfer_encoding="chunked")
    return Hostile("a body that grows too large", (head, *[chunk] * 4))


def slow_body(rng: random.Random) -> Hostile:
    head = http(rng.choice((IMAGES, EDITS, CHAT)), content_length="1000")
    return Hostile("a slow body", (head, *[b"x"] * rng.randrange(1, 4)), pause=BODY_SECONDS / 3)


def hang_up(rng: random.Random) -> Hostile:
    drawing = in_json(IMAGES, **{"num_inference_steps": 200, "n": 4, "guidance_scale": 3})
    streaming = in_json(IMAGES, **{"num_inference_steps": 200, "stream": True, "partial_images": 3})
    talking = in_json(CHAT, temperature=2, max_tokens=300, stream=rng.random() < 0.5)
    whole = rng.choice((drawing, streaming, talking, in_form(EDITS, image("a.png"), ('name="prompt"', b"a"))))
    name, part = rng.choice((("in a head", 30), ("in a body", len(whole) - 5), ("during an answer", len(whole))))
    return Hostile(f"a client that goes {name}", (whole[:part],), pause=0.02, is_left=True)


def no_http(rng: random.Random) -> Hostile:
    lines = [b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nA b\r\n\r\n"]
    lines += [http("/health", content_length="-1"), http("/health", content_length="1,2"), b"GET / HTTP/1.1\r\n\r\n"]
    lines += [http("/health", content_length=None, transfer_encoding="gzip"), b"A" * 100_000]
    return Hostile("no HTTP", (rng.choice(lines),), is_http=False)


KINDS: dict[Callable[[random.Random], Hostile], int] = {
    wrong_value: 5, wrong_value_of_form: 2, unknown_field: 1, wrong_json: 4, wrong_messages: 3, wrong_picture: 4,
    wrong_address: 3,
    wrong_form: 4, wrong_path: 2, wrong_method: 1, wrong_host: 1, wrong_key: 2, large_body: 1, slow_body: 1,
    hang_up: 2, no_http: 1,
}  # fmt: skip
"""Makers of requests, and how often each is taken."""


def hostile_requests(seed: int, number: int) -> Iterator[Hostile]:
    """So many requests, the same ones for the same seed; every kind is among the first ones."""
    rng = random.Random(seed)
    for kind in [*KINDS, *rng.choices(list(KINDS), list(KINDS.values()), k=number)][:number]:
        yield kind(rng)
