"""`transformers serve` answers about pictures as the model does, once the package is imported."""

import base64
import io

import openai
import pytest
import torch
from tests.serving.started import free_port, started
from transformers.utils.import_utils import is_serve_available

from blip3o_hf import Blip3oPipeline, packaged_model_path

TINY = packaged_model_path("blip3o-tiny")
COMMAND = "import blip3o_hf; from transformers.cli.transformers import main; main()"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_serve_available(), reason="its packages are not installed: transformers[serving]"),
]


@pytest.fixture(scope="module")
def client():
    port = free_port()
    address = f"http://localhost:{port}"
    command = ("-c", COMMAND, "serve", TINY, "--port", port, "--device", "cpu")
    with started(*command, health=f"{address}/health", seconds=200):
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="none")


@pytest.fixture(scope="module")
def pipe():
    return Blip3oPipeline.from_pretrained(TINY)


@pytest.mark.parametrize("question", ["how many circles are there?", "describe the image"])
def test_it_answers_as_generate_does(client, pipe, question):
    image = pipe("two red circles", generator=torch.Generator().manual_seed(0)).images[0]
    file = io.BytesIO()
    image.save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    answer = client.chat.completions.create(model=TINY, messages=[{"role": "user", "content": content}], max_tokens=20)

    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    inputs = pipe.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = pipe.model.generate(**inputs, max_new_tokens=20)
    expected = pipe.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert expected
    assert answer.choices[0].message.content == expected


def test_it_has_no_images_api(client):
    with pytest.raises(openai.NotFoundError):
        client.images.generate(model=TINY, prompt="two red circles")
