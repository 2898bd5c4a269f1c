"""One server of the packaged model, in a thread of its own, for the tests of this folder."""

import base64
import io
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from openai import OpenAI
from PIL import Image
from tests.serving.started import Running, running

from blip3o_hf import Blip3oPipeline, packaged_model_path
from blip3o_hf.pipelines.reconstruction import Blip3oReconstructionPipeline
from blip3o_hf.serving.server import Server, ServerSettings

NAME = "blip3o-tiny"
FAST = {"num_inference_steps": 2, "guidance_scale": 1.0, "plan": False, "num_attempts": 1}
"""Arguments of the pipeline, and fields of a request, that draw quickly."""


@pytest.fixture(scope="session")
def tiny() -> Blip3oPipeline:
    """The packaged pipeline; each call of it has its own state, so the server's thread may use it meanwhile."""
    pipe = Blip3oPipeline.from_pretrained(packaged_model_path(NAME))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def varying(tiny) -> Blip3oReconstructionPipeline:
    return Blip3oReconstructionPipeline.from_pipe(tiny)


@pytest.fixture(scope="session")
def make_server(tiny, varying) -> Callable[..., Server]:
    """`make_server(**settings)`: one that does not listen yet."""
    return lambda **settings: Server(tiny, ServerSettings(NAME, **settings), varying)


@pytest.fixture(scope="session")
def listening() -> Callable:
    """`with listening(server) as live`: a server that answers."""
    return running


@pytest.fixture(scope="session")
def live(make_server) -> Iterator[Running]:
    with running(make_server(max_batch=32)) as live:
        yield live


@pytest.fixture(scope="session")
def client(live) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def fast() -> dict:
    return FAST


@pytest.fixture(scope="session")
def opened() -> Callable[[str], Image.Image]:
    """`opened(text)`: the picture of base64, or of a data URL."""
    return lambda text: Image.open(io.BytesIO(base64.b64decode(text.rpartition(",")[2])))


@pytest.fixture(scope="session")
def as_png() -> Callable[[Image.Image], bytes]:
    def written(image: Image.Image, form: str = "PNG") -> bytes:
        file = io.BytesIO()
        image.save(file, format=form)
        return file.getvalue()

    return written


@pytest.fixture(scope="session")
def shown(as_png) -> Callable[[Image.Image], dict]:
    """`shown(image)`: a part of a message."""

    def part(image: Image.Image) -> dict:
        url = f"data:image/png;base64,{base64.b64encode(as_png(image)).decode()}"
        return {"type": "image_url", "image_url": {"url": url}}

    return part


@pytest.fixture(scope="session")
def same_picture() -> Callable[..., bool]:
    """`same_picture(first, second, levels=0)`: whether no pixel differs by more than these levels of 255."""

    def same(first: Image.Image, second: Image.Image, levels: int = 0) -> bool:
        first, second = (np.asarray(image.convert("RGB")).astype(int) for image in (first, second))
        return first.shape == second.shape and int(np.abs(first - second).max()) <= levels

    return same
