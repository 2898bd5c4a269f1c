"""Pictures by OpenAI's own client: those that the pipeline draws when it is called directly."""

import asyncio
import json
import urllib.request
from contextlib import contextmanager

import numpy as np
import openai
import pytest
import torch
from openai import AsyncOpenAI
from PIL import Image
from tests.serving.held import Held

from blip3o_hf.serving.server import Server, ServerSettings

PROMPTS = ("two red circles", "a small blue square", "a green triangle above a yellow circle")


@pytest.fixture
def direct(tiny, fast):
    """`direct(prompt, seed=0, **settings)`: the picture that a user of the pipeline gets."""

    def draw(prompt, seed=0, **settings):
        generator = torch.Generator().manual_seed(seed)
        return tiny(prompt, generator=generator, **{**fast, **settings})

    return draw


def test_pictures_are_those_of_the_pipeline_and_each_has_the_next_seed(
    client, tiny, direct, fast, opened, same_picture
):
    answer = client.images.generate(prompt=PROMPTS[0], n=3, extra_body={"seed": 5, **fast})
    assert [picture.seed for picture in answer.data] == [5, 6, 7]
    for picture in answer.data:
        drawn = opened(picture.b64_json)
        # A batch may round differently from a single picture in the last bit.
        assert drawn.format == "PNG" and same_picture(drawn, direct(PROMPTS[0], picture.seed).images[0], levels=1)
    assert not same_picture(*(opened(picture.b64_json) for picture in answer.data[:2]), levels=8)
    assert (answer.size, answer.output_format, answer.background, answer.quality) == ("64x64", "png", "opaque", "auto")
    assert answer.settings == fast
    assert answer.usage.input_tokens == len(tiny.processor.tokenizer(PROMPTS[0])["input_ids"])
    assert answer.usage.output_tokens == 3 * tiny.model.config.num_queries
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_one_picture_is_exactly_that_of_the_pipeline(client, direct, fast, opened, same_picture):
    first, again = (client.images.generate(prompt=PROMPTS[1], extra_body={"seed": 3, **fast}) for _ in range(2))
    expected = direct(PROMPTS[1], 3).images[0]
    assert same_picture(opened(first.data[0].b64_json), expected)
    assert same_picture(opened(again.data[0].b64_json), expected)


def test_without_a_seed_the_answer_says_which_one_was_drawn(client, direct, fast, opened, same_picture):
    pictures = [client.images.generate(prompt=PROMPTS[0], extra_body=fast).data[0] for _ in range(2)]
    assert pictures[0].seed != pictures[1].seed
    for picture in pictures:
        assert same_picture(opened(picture.b64_json), direct(PROMPTS[0], picture.seed).images[0])


def test_by_default_the_model_plans_and_looks_as_it_was_saved(client, tiny, opened, same_picture):
    picture = client.images.generate(prompt=PROMPTS[2], model="blip3o-tiny", extra_body={"seed": 0}).data[0]
    expected = tiny(PROMPTS[2], generator=torch.Generator().manual_seed(0))
    assert same_picture(opened(picture.b64_json), expected.images[0])
    assert picture.revised_prompt == expected.plans[0] and len(picture.revised_prompt) > 10
    assert picture.attempts == expected.attempts[0] and picture.accepted == bool(expected.accepted[0])


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_the_output_format_is_the_format(form, client, direct, fast, opened, same_picture):
    def drawn(**fields):
        answer = client.images.generate(
            prompt=PROMPTS[0], output_format=form, extra_body={"seed": 1, **fast}, **fields
        )
        assert answer.output_format == form
        return answer.data[0].b64_json

    picture = opened(drawn())
    assert picture.format == form.upper()
    assert same_picture(picture, direct(PROMPTS[0], 1).images[0], levels=60 if form == "jpeg" else 0)
    if form != "png":
        assert len(drawn(output_compression=5)) < len(drawn(output_compression=95))


def test_a_negative_prompt_and_guidance_are_the_pipelines(client, direct, fast, opened, same_picture):
    settings = {**fast, "guidance_scale": 3.0, "num_inference_steps": 3}
    plain, away = (
        opened(client.images.generate(prompt=PROMPTS[0], extra_body={"seed": 2, **settings, **more}).data[0].b64_json)
        for more in ({}, {"negative_prompt": PROMPTS[1]})
    )
    assert same_picture(plain, direct(PROMPTS[0], 2, **settings).images[0])
    assert same_picture(away, direct(PROMPTS[0], 2, **settings, negative_prompt=PROMPTS[1]).images[0])
    assert not same_picture(plain, away)


@pytest.mark.parametrize("size", ["auto", "64x64"])
def test_the_own_size_may_be_asked_for(size, client, fast):
    assert client.images.generate(prompt=PROMPTS[0], size=size, extra_body=fast).size == "64x64"


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"size": "1024x1024"}, "size", "`size` must be auto or 64x64, the only size of this model. Got '1024x1024'."),
        ({"size": "64"}, "size", "WIDTHxHEIGHT of at most 2048"),
        ({"size": "0x64"}, "size", "WIDTHxHEIGHT of at most 2048"),
        ({"n": 11}, "n", "`n` must be a whole number from 1 to 10. Got 11. Choose one."),
        ({"response_format": "url"}, "response_format", "b64_json, since no picture is kept here"),
        ({"background": "transparent"}, "background", "one of auto, opaque"),
        ({"output_format": "svg"}, "output_format", "one of png, jpeg, webp"),
        ({"partial_images": 2}, "partial_images", "0 without stream"),
        ({"stream": True, "n": 2}, "n", "1 in a stream"),
        ({"prompt": " "}, "prompt", "`prompt` must be a text."),
        ({"extra_body": {"negative_prompt": "x", "guidance_scale": 1}}, None, "guidance_scale=1.0 switches guidance"),
        ({"extra_body": {"decoder_guidance_scale": 2}}, None, "Only a diffusion decoder takes"),
        ({"extra_body": {"lora": "x"}}, "lora", "Got 'lora'. Known are background, "),
        ({"extra_body": {"image": "x"}}, "image", "Got 'image'."),
        ({"prompt": "circle " * 2000}, None, "A prompt must fit the context"),
        ({"prompt": "a <|image_pad|>"}, None, "A prompt must hold no '<|image_pad|>'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_openais_form(fields, param, text, client):
    with pytest.raises(openai.BadRequestError) as caught:
        list(client.images.generate(**{"prompt": PROMPTS[0], **fields}))
    assert text in caught.value.body["message"]
    assert caught.value.param == param and caught.value.type == "invalid_request_error"


def test_the_model_has_one_name(client, fast):
    with pytest.raises(openai.NotFoundError, match="`model` must be 'blip3o-tiny', the one model of this server"):
        client.images.generate(prompt=PROMPTS[0], model="gpt-image-1")
    assert [model.id for model in client.models.list()] == ["blip3o-tiny"]
    assert client.models.retrieve("blip3o-tiny").owned_by == "blip3o-hf"
    with pytest.raises(openai.NotFoundError, match="Ask /v1/models for its name"):
        client.models.retrieve("owner/other")


def test_an_edit_of_one_or_several_pictures_in_any_form(
    client, tiny, fast, opened, same_picture, make_image, as_png, tmp_path
):
    images = [make_image(0), make_image(1)]
    data = [as_png(image) for image in images]
    (tmp_path / "one.png").write_bytes(data[0])

    def edited(image, **fields):
        extra = {"seed": 4, **fast}
        return opened(
            client.images.edit(image=image, prompt="make it blue", extra_body=extra, **fields).data[0].b64_json
        )

    def expected(*images):
        generator = torch.Generator().manual_seed(4)
        return tiny("make it blue", image=list(images), generator=generator, **fast).images[0]

    one = expected(images[0])
    with open(tmp_path / "one.png", "rb") as file:
        for image in (file, tmp_path / "one.png", data[0], [data[0]], ("../../x.jpg", data[0], "image/jpeg")):
            assert same_picture(edited(image), one)
    both = expected(*images)
    assert same_picture(edited(data), both) and not same_picture(both, one)
    assert edited(data[0], output_format="webp", n=1, quality="high").format == "WEBP"


def test_an_edit_takes_its_numbers_as_texts(client, fast, make_image, as_png):
    answer = client.images.edit(
        image=as_png(make_image()), prompt="make it blue", n=2, output_compression=50, extra_body={**fast, "seed": 8}
    )
    assert [picture.seed for picture in answer.data] == [8, 9] and answer.settings == fast


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"mask": b"x"}, "mask", "`mask` cannot be used here: the instruction says what changes. Leave it out."),
        ({"image": b"no picture"}, "image", "Got 10 bytes of another kind. Save it as PNG."),
        ({"image": b""}, "image", "Got 0 bytes of another kind."),
        ({"prompt": ""}, "prompt", "`prompt` must be a text."),
        ({"extra_body": {"seed": "--5"}}, "seed", "a whole number from 0 to"),
        ({"extra_body": {"strength": 0.5}}, "strength", "Got 'strength'."),
    ],
)
def test_an_edit_that_cannot_be_made_is_refused(fields, param, text, client, make_image, as_png):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(**{"image": as_png(make_image()), "prompt": "make it blue", **fields})
    assert text in caught.value.body["message"] and caught.value.param == param


def test_variations_are_those_of_the_reconstruction_pipeline(
    client, varying, opened, same_picture, make_image, as_png
):
    image, settings = make_image(), {"num_inference_steps": 10, "guidance_scale": 1.0}

    def varied(strength, fields):
        extra = {"seed": 1, **settings, **fields}
        answer = client.images.create_variation(image=as_png(image), n=2, extra_body=extra)
        drawn = [opened(picture.b64_json) for picture in answer.data]
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        expected = varying.vary(image, strength=strength, num_images=2, generator=generators, **settings).images
        assert all(same_picture(*pair) for pair in zip(drawn, expected, strict=True))
        return drawn[0]

    assert not same_picture(varied(0.6, {}), varied(0.1, {"strength": 0.1}))


def test_variations_need_one_picture_and_an_encoder(client, live, monkeypatch, make_image, as_png):
    with pytest.raises(openai.BadRequestError, match=r"`image` must be one picture\. Got '2 pictures'\. Send one\."):
        client.images.create_variation(image=[as_png(make_image())] * 2)
    with pytest.raises(openai.BadRequestError, match=r"Got 'prompt'\. Known are"):
        client.images.create_variation(image=as_png(make_image()), extra_body={"prompt": "x"})
    monkeypatch.setattr(live.server, "reconstruction", None)
    with pytest.raises(openai.BadRequestError, match="Variations need the target encoder of the model"):
        client.images.create_variation(image=as_png(make_image()))


def test_pictures_of_a_stream_get_nearer_to_the_last_one(client, direct, fast, opened):
    settings = {**fast, "num_inference_steps": 8}
    events = list(
        client.images.generate(
            prompt=PROMPTS[0], stream=True, partial_images=3, extra_body={"seed": 0, **settings}, output_format="webp"
        )
    )
    assert [event.type for event in events] == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:-1]] == [0, 1, 2]
    assert {event.output_format for event in events} == {"webp"} and {event.size for event in events} == {"64x64"}
    assert events[-1].usage.total_tokens > 0 and events[-1].seed == 0
    pictures = [np.asarray(opened(event.b64_json).convert("RGB")).astype(int) for event in events]
    last = np.asarray(direct(PROMPTS[0], 0, num_inference_steps=8).images[0]).astype(int)
    assert (pictures[-1] == last).all()
    distances = [np.abs(picture - last).mean() for picture in pictures]
    assert distances == sorted(distances, reverse=True) and distances[0] > distances[-2]


@pytest.mark.parametrize(("steps", "number"), [(1, 0), (2, 0), (3, 1), (4, 2)])
def test_few_steps_have_few_partial_pictures(steps, number, client, fast):
    extra = {**fast, "num_inference_steps": steps}
    events = list(client.images.generate(prompt="a", stream=True, partial_images=3, extra_body=extra))
    assert [event.type for event in events[:-1]] == ["image_generation.partial_image"] * number


def test_edits_are_streamed_by_their_own_names(client, fast, make_image, as_png):
    stream = client.images.edit(
        image=as_png(make_image()),
        prompt="make it blue",
        stream=True,
        partial_images=1,
        extra_body={**fast, "num_inference_steps": 4},
    )
    assert [event.type for event in stream] == ["image_edit.partial_image", "image_edit.completed"]


@contextmanager
def held(live):
    """In this block the model of a server is busy."""
    job = Held(60)
    live.server.engine.submit(job)
    assert job.begun.wait(60)
    try:
        yield
    finally:
        job.go.set()


async def until_waiting(live, number):
    """Until so many requests wait for the model."""
    while live.measured("blip3o_waiting_jobs") < number:
        await asyncio.sleep(0.01)


def test_requests_that_arrive_together_are_drawn_together(live, direct, fast, opened, same_picture):
    """32 clients at once: one batch, and each gets the picture that it would get alone."""
    before = {name: live.measured(f"blip3o_batch_rows_{name}", kind="draw") for name in ("count", "sum")}
    requests = [(PROMPTS[number % 3], number) for number in range(32)]

    async def ask():
        async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
            asked = (
                client.images.generate(prompt=prompt, extra_body={"seed": seed, **fast}) for prompt, seed in requests
            )
            with held(live):
                answers = asyncio.gather(*asked)
                await until_waiting(live, 32)
            return await answers

    answers = asyncio.run(ask())
    assert live.measured("blip3o_batch_rows_count", kind="draw") - before["count"] == 1
    assert live.measured("blip3o_batch_rows_sum", kind="draw") - before["sum"] == 32
    for (prompt, seed), answer in zip(requests, answers, strict=True):
        picture = answer.data[0]
        # Floating-point sums of a batch round differently in the last bit: one level of 255 at most.
        assert picture.seed == seed and same_picture(
            opened(picture.b64_json), direct(prompt, seed).images[0], levels=1
        )


def test_a_bad_request_does_not_spoil_the_others_of_its_batch(live, direct, fast, opened, same_picture):
    async def ask():
        async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
            prompts = [PROMPTS[0], "circle " * 2000, PROMPTS[1]]
            asked = (client.images.generate(prompt=prompt, extra_body={"seed": 0, **fast}) for prompt in prompts)
            with held(live):
                answers = asyncio.gather(*asked, return_exceptions=True)
                await until_waiting(live, 3)
            return await answers

    first, bad, last = asyncio.run(ask())
    assert isinstance(bad, openai.BadRequestError) and "must fit the context" in str(bad)
    for prompt, answer in ((PROMPTS[0], first), (PROMPTS[1], last)):
        assert same_picture(opened(answer.data[0].b64_json), direct(prompt).images[0])


def test_requests_of_one_moment_wait_for_each_other(live, fast, monkeypatch):
    monkeypatch.setattr(live.server.engine, "batch_wait", 60)  # a full batch waits no longer
    before = live.measured("blip3o_batch_rows_count", kind="draw")

    async def ask():
        async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
            await asyncio.gather(*(client.images.generate(prompt="a", n=8, extra_body=fast) for _ in range(4)))

    asyncio.run(ask())
    assert live.measured("blip3o_batch_rows_count", kind="draw") == before + 1


def test_a_full_queue_says_429_and_the_client_asks_again(make_server, listening, fast):
    with listening(make_server(max_waiting=1)) as live:

        async def ask(max_retries):
            async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=max_retries) as client:
                return await client.images.generate(prompt="a", extra_body={"seed": 0, **fast})

        async def ask_all():
            with held(live):
                first = asyncio.ensure_future(ask(0))
                await until_waiting(live, 1)
                with pytest.raises(openai.RateLimitError) as caught:
                    await ask(0)
                patient = asyncio.ensure_future(ask(5))
                while live.measured("blip3o_requests_total", path="/v1/images/generations", status="429") < 2:
                    await asyncio.sleep(0.01)
            return caught.value, await first, await patient

        refused, *answers = asyncio.run(ask_all())
        assert refused.response.headers["retry-after"] == "1"
        assert (refused.code, refused.type) == ("queue_full", "rate_limit_error")
        assert answers[0].data[0].b64_json == answers[1].data[0].b64_json


def test_an_answer_that_takes_too_long_is_given_up(make_server, listening, fast):
    with (
        listening(make_server(request_seconds=0.2)) as live,
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.InternalServerError, match=r"An answer takes at most 0\.2 seconds") as caught:
            client.images.generate(prompt="a", n=10, extra_body={**fast, "num_inference_steps": 200})
        assert caught.value.status_code == 504 and caught.value.code == "timeout"
        assert client.images.generate(prompt="a", extra_body=fast).data
        assert live.measured("blip3o_batch_seconds_sum", kind="draw") < 3  # it was stopped


def test_with_a_key_the_client_must_have_it(make_server, listening):
    with listening(make_server(api_keys=("secret",))) as live:
        for key, is_right in (("secret", True), ("other", False)):
            with openai.OpenAI(base_url=f"{live.url}/v1", api_key=key, max_retries=0) as client:
                if is_right:
                    assert len(client.models.list().data) == 1
                else:
                    with pytest.raises(openai.AuthenticationError, match="It has another one"):
                        client.models.list()


def test_a_failure_of_the_model_is_told_without_its_details(live, client, monkeypatch, fast):
    def broken(*_, **__):
        raise RuntimeError("/private/path: CUDA error")

    monkeypatch.setattr("blip3o_hf.serving.drawing.lengths", broken)
    with pytest.raises(openai.InternalServerError) as caught:
        client.images.generate(prompt="a", extra_body=fast)
    assert caught.value.body["message"] == (
        "The server failed on this request, and its log says why. Send another one."
    )
    assert (caught.value.code, caught.value.type) == ("internal_error", "server_error")
    assert caught.value.response.headers["connection"] == "close"  # as it is
    with pytest.raises(openai.APIError, match=r"The answer could not be ended\.|The server failed on this request"):
        list(
            client.images.generate(
                prompt="a", stream=True, partial_images=1, extra_body={**fast, "num_inference_steps": 4}
            )
        )
    monkeypatch.undo()
    assert client.images.generate(prompt="a", extra_body=fast).data


def test_a_server_needs_a_whole_pipeline(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "processor", None)
    with pytest.raises(ValueError, match=r"A server needs a pipeline with a processor\. This one has none"):
        Server(tiny, ServerSettings("x"))


def test_a_picture_of_the_answer_is_small_and_rgb(client, fast, opened):
    picture = opened(client.images.generate(prompt="a", extra_body=fast).data[0].b64_json)
    assert isinstance(picture, Image.Image) and picture.size == (64, 64) and picture.mode == "RGB"


def test_health_and_measurements_can_be_read_by_machines(live, client, fast):
    client.images.generate(prompt="a", extra_body=fast)
    with urllib.request.urlopen(f"{live.url}/health") as answer:
        assert json.load(answer) == {"status": "ok"}
    with urllib.request.urlopen(f"{live.url}/metrics") as answer:
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = answer.read().decode().splitlines()
    assert any(line.startswith('blip3o_requests_total{path="/v1/images/generations",status="200"} ') for line in lines)
    assert "blip3o_waiting_jobs 0.0" in lines
