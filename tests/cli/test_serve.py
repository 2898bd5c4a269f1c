"""`blip3o-hf serve` on the command line: bad settings are one clear line, and the server is made as they say."""

import builtins
import socket

import pytest

from blip3o_hf.assets import packaged_model_path
from blip3o_hf.cli import build_parser, main
from blip3o_hf.cli.serve import KEY, served_name


def fails(capsys, *words):
    assert main(["serve", *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("blip3o-hf serve: ") and error.count("\n") == 1 and "Traceback" not in error
    return error


@pytest.fixture
def served(monkeypatch):
    """What a command would serve: the server, the host and the port."""
    given = []
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setattr("blip3o_hf.serving.server.serve", lambda *arguments: given.append(arguments))

    def run(*words):
        given.clear()
        assert main(["serve", *map(str, words)]) == 0
        return given[0]

    return run


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args(["serve", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "blip3o-hf serve" in printed.partition("examples:")[2] and "%(default)" not in printed


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--port", "0"], "--port must be a number from 1 to 65535. Got 0. 8000 is the usual one."),
        (["--port", "70000"], "--port must be a number from 1 to 65535. Got 70000."),
        (["--port", "-1"], "--port must be a number from 1 to 65535. Got -1."),
        (["--max-batch", "0"], "--max-batch must be above 0. Got 0. Use a larger one."),
        (["--max-waiting", "-1"], "--max-waiting must be above 0. Got -1. Use a larger one."),
        (["--max-body", "0"], "--max-body must be above 0. Got 0. Use a larger one."),
        (["--conversations", "0"], "--conversations must be above 0. Got 0. Use a larger one."),
        (["--timeout", "0"], "--timeout must be above 0. Got 0.0. Use a larger one."),
        (["--timeout", "nan"], "--timeout must be above 0. Got nan. Use a larger one."),
        (["--batch-wait", "-1"], "--batch-wait must be at least 0. Got -1.0. Use 0 not to wait."),
        (["--batch-wait", "nan"], "--batch-wait must be at least 0. Got nan. Use 0 not to wait."),
        (["--host", "203.0.113.1"], "The server must be able to listen on 203.0.113.1, port "),
    ],
)
def test_bad_settings_are_refused_before_a_model_is_loaded(words, text, port, capsys, monkeypatch):
    monkeypatch.setattr("blip3o_hf.pipelines.pipeline_blip3o.Blip3oPipeline.from_pretrained", None)
    assert text in fails(capsys, *(() if "--port" in words else ("--port", port)), *words)


@pytest.mark.parametrize("words", [["--port", "x"], ["--max-batch", "1.5"], ["--max-batch"], ["--no-such"]])
def test_what_is_no_setting_is_refused_by_the_parser(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["serve", *words])
    assert stop.value.code == 2 and "usage: blip3o-hf" in capsys.readouterr().err


def test_a_port_in_use_is_refused(capsys):
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        assert f"The server must be able to listen on 127.0.0.1, port {port}. It cannot" in fails(
            capsys, "--port", port
        )


@pytest.mark.parametrize("key", ["a b", "schlüssel", 'a"b'])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(key, port, capsys, monkeypatch):
    monkeypatch.setattr("blip3o_hf.pipelines.pipeline_blip3o.Blip3oPipeline.from_pretrained", None)
    for words in (["--api-key", key], []):
        monkeypatch.setenv(KEY, "" if words else key)
        error = fails(capsys, "--port", port, *words)
        assert "A key must be printable ASCII without spaces and quotes." in error and key not in error


@pytest.mark.parametrize("missing", ["starlette", "uvicorn", "python_multipart", "prometheus_client"])
def test_without_its_libraries_the_command_names_the_extra(missing, capsys, monkeypatch):
    own = builtins.__import__

    def importing(name, *arguments, **named):
        if name == missing:
            raise ImportError(f"No module named {name!r}", name=name)
        return own(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", importing)
    error = fails(capsys)
    assert f"There is no {missing}. In a clone, run: pip install -e '.[serve]'" in error


@pytest.mark.parametrize("missing", ["blip3o-tinny", "./nothing"])
def test_an_unknown_model_is_refused(missing, port, capsys):
    assert repr(missing) in fails(capsys, "--port", port, "--model", missing)


def test_the_name_of_the_model_tells_no_path(tmp_path, monkeypatch):
    assert served_name("blip3o-tiny") == "blip3o-tiny" and served_name("owner/name") == "owner/name"
    folder = tmp_path / "mine" / "pipeline"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    for path in (folder, f"{folder}/", ".", "../pipeline"):
        assert served_name(str(path)) == "pipeline"


def test_the_server_is_as_the_settings_say(served, port, capsys):
    server, host, listens = served("--port", port)
    settings = server.settings
    assert (host, listens, settings.name, settings.api_keys) == ("127.0.0.1", port, "blip3o-tiny", ())
    assert (settings.max_batch, settings.max_waiting, settings.batch_wait) == (8, 64, 0.01)
    assert settings.max_body == 32 * 2**20 and settings.request_seconds == 600 and not settings.allow_image_urls
    assert "127.0.0.1" in settings.allowed_hosts and "localhost" in settings.allowed_hosts
    assert server.reconstruction is not None and capsys.readouterr().err == ""


def test_settings_are_taken(served, port, capsys, monkeypatch):
    monkeypatch.setenv(KEY, " from-the-environment ")
    words = ["--api-key", "one", "--api-key", "two", "--served-name", "mine", "--allow-image-urls", "--max-batch", 2]
    words += ["--batch-wait", 250, "--max-waiting", 3, "--timeout", 1.5, "--max-body", 1, "--conversations", 7]
    server, _, _ = served(
        "--port", port, "--host", "0.0.0.0", "--allow-host", ".Example.org", "--model", packaged_model_path(), *words
    )
    settings = server.settings
    assert settings.name == "mine" and settings.api_keys == ("one", "two", "from-the-environment")
    assert (settings.max_batch, settings.batch_wait, settings.max_waiting) == (2, 0.25, 3)
    assert (settings.request_seconds, settings.max_body, settings.conversations) == (1.5, 2**20, 7)
    assert settings.allow_image_urls and ".example.org" in settings.allowed_hosts
    assert capsys.readouterr().err == ""


def test_a_server_that_others_reach_without_a_key_says_so(served, port, capsys):
    served("--port", port, "--host", "0.0.0.0")
    assert f"note: everybody who reaches 0.0.0.0 may use this server; set {KEY}" in capsys.readouterr().err
