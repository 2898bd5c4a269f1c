"""The Python of README, docs and model cards runs from top to bottom, with nothing but what the page itself says.

Small models stand in for the published ones, and a CPU for the GPU.
"""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
from tests.published_layout import write_published_checkpoint

from blip3o_hf import Blip3oPipeline, packaged_model_path
from blip3o_hf.cli import main

ROOT = Path(__file__).parents[2]
SNIPPET = re.compile(r"(?P<mark><!-- needs a GPU -->\n+)?^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
DOCUMENTS = [
    path
    for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("model_cards/*.md")))
    if SNIPPET.search(path.read_text())
]
COMMAND = re.compile(r"^blip3o-hf (export PIPELINE .*)$", re.MULTILINE)
LIBRARIES = ("torchao", "bitsandbytes")
SERVER = "http://127.0.0.1:8000"
REPLACED = {
    r"BLIP3o/BLIP3o-Model-\dB|(?<=\")blip3o-\db(?=\")": "{published}",
    r"(?<=\")blip3o-tiny-digits(?=\")": packaged_model_path("blip3o-tiny"),
    r'"cuda"': '"cpu"',
    r"EvaClipVisionModel.from_pretrained\((.*?)\)": r"EvaClipVisionModel.from_pretrained(\1, num_attention_heads=2)",
    r"enable_model_cpu_offload\(\)": 'enable_model_cpu_offload(device="cpu")',
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    write_published_checkpoint(folder, tied=False, target_encoder=True, diffusion_decoder=True)
    return str(folder)


@pytest.fixture
def photos(tmp_path, make_image):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        make_image(number).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}")
    captioned = shutil.copytree(folder, tmp_path / "captioned", ignore=shutil.ignore_patterns("*.txt"))
    rows = [f"{number}.png,picture {number}" for number in range(3)]
    (captioned / "metadata.csv").write_text("\n".join(["file_name,caption", *rows]) + "\n")
    return str(folder)


@pytest.fixture(scope="module")
def server():
    """The address of a server that was started as pages say."""
    from tests.serving.started import running

    from blip3o_hf.serving.server import Server, ServerSettings

    pipe = Blip3oPipeline.from_pretrained(packaged_model_path("blip3o-tiny"))
    with running(Server(pipe, ServerSettings(name="blip3o-tiny"))) as live:
        yield live.url


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_snippets_run(path, published, photos, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    names = {}
    text = path.read_text()
    for command in COMMAND.finditer(text):  # what later snippets open
        assert main(command[1].replace("PIPELINE", packaged_model_path("blip3o-tiny")).split()) == 0
    for snippet in SNIPPET.finditer(text):
        code = snippet["code"]
        for pattern, replacement in REPLACED.items():
            code = re.sub(pattern, replacement.replace("{published}", published), code)
        if SERVER in code:
            code = code.replace(SERVER, request.getfixturevalue("server"))
        line = text[: snippet.start("code")].count("\n")
        program = compile("\n" * line + code, path, "exec")
        absent = [name for name in LIBRARIES if name in code.lower() and importlib.util.find_spec(name) is None]
        if not absent and not snippet["mark"]:
            exec(program, names)
