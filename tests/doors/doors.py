"""Every way to open a repository, as functions of its folder or Hub id that return what came of it.

Those that draw return the pixels `[H, W, 3]` of one prompt and seed, which must be the same whichever door was taken;
those that read return a text. `python doors.py OUT SOURCE DOOR...` runs doors in a fresh process, in which the package
is imported and nothing of it is used before, and writes `OUT`.npz.
"""

import json
import sys
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

import blip3o_hf  # noqa: F401 - opens the doors

PROMPT = "two red circles"
STEPS = 2


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def draw(pipe, **inputs) -> np.ndarray:
    """By any pipeline of ours that has the interface of diffusers."""
    pipe.set_progress_bar_config(disable=True)
    steps = {"num_inference_steps": STEPS}
    if pipe.unet is not None:
        steps["decoder_num_inference_steps"] = STEPS
    return pixels(pipe(**inputs or {"prompt": PROMPT}, generator=generator(), **steps).images[0])


def blip3o_pipeline(source):
    from blip3o_hf import Blip3oPipeline

    return draw(Blip3oPipeline.from_pretrained(source))


def diffusion_pipeline(source):
    from diffusers import DiffusionPipeline

    return draw(DiffusionPipeline.from_pretrained(source))


def auto_pipeline(source):
    from diffusers import AutoPipelineForText2Image

    return draw(AutoPipelineForText2Image.from_pretrained(source))


def from_pipe(source):
    from diffusers import AutoPipelineForText2Image

    from blip3o_hf import Blip3oPipeline

    return draw(AutoPipelineForText2Image.from_pipe(Blip3oPipeline.from_pretrained(source)))


def model_and_processor(source):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from blip3o_hf import Blip3oPipeline

    parts = {
        "model": AutoModelForImageTextToText.from_pretrained(source),
        "processor": AutoProcessor.from_pretrained(source),
    }
    return draw(Blip3oPipeline.from_pretrained(source, **parts))


def prior_then_decoder(source):
    from blip3o_hf import Blip3oPipeline

    parts = ("decoder", "unet", "vae", "decoder_scheduler")
    prior = Blip3oPipeline.from_pretrained(source, **dict.fromkeys(parts))
    prior.set_progress_bar_config(disable=True)
    random = generator()
    made = prior(PROMPT, num_inference_steps=STEPS, generator=random, output_type="features")
    pipe = Blip3oPipeline.from_pretrained(source)
    pipe.set_progress_bar_config(disable=True)
    steps = {} if pipe.unet is None else {"decoder_num_inference_steps": STEPS}
    return pixels(pipe(image_features=made.image_features, generator=random, **steps).images[0])


def text_to_image(source):
    from transformers import pipeline

    draw_one = pipeline("text-to-image", model=source)
    steps = {"num_inference_steps": STEPS}
    if draw_one.drawing.unet is not None:
        steps["decoder_num_inference_steps"] = STEPS
    return pixels(draw_one(PROMPT, seed=0, **steps)["image"])


def conversation(processor) -> list[dict]:
    return [{"role": "user", "content": processor.instruction.replace("{caption}", PROMPT)}]


def any_to_any(source):
    from transformers import pipeline

    from blip3o_hf.checkpoints.decoder_files import has_decoder
    from blip3o_hf.checkpoints.published_names import PUBLISHED_DECODER

    unified = pipeline("any-to-any", model=source)
    steps = {"num_inference_steps": STEPS}
    if has_decoder(source, subfolder=PUBLISHED_DECODER):
        steps["decoder_num_inference_steps"] = STEPS
    drawn = unified(
        text=conversation(unified.processor),
        generation_mode="image",
        generate_kwargs={"generator": generator(), **steps},
    )
    return pixels(drawn[0]["generated_image"])


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def question() -> list[dict]:
    content = [{"type": "image", "image": picture()}, {"type": "text", "text": "How many circles are there?"}]
    return [{"role": "user", "content": content}]


def image_text_to_text(source):
    from transformers import pipeline

    answer = pipeline("image-text-to-text", model=source)
    return answer(text=question(), max_new_tokens=4, return_full_text=False)[0]["generated_text"]


def any_to_any_text(source):
    from transformers import pipeline

    answer = pipeline("any-to-any", model=source)
    return answer(text=question(), max_new_tokens=4, return_full_text=False)[0]["generated_text"]


def _answer(model, processor):
    inputs = processor.apply_chat_template(
        question(), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    answer = model.generate(**inputs, max_new_tokens=4)[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(answer, skip_special_tokens=True)[0]


def auto_model_image_text_to_text(source):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return _answer(AutoModelForImageTextToText.from_pretrained(source), AutoProcessor.from_pretrained(source))


def auto_model_multimodal(source):
    from transformers import AutoModelForMultimodalLM, AutoProcessor

    return _answer(AutoModelForMultimodalLM.from_pretrained(source), AutoProcessor.from_pretrained(source))


def own_classes(source):
    from blip3o_hf import Blip3oForConditionalGeneration, Blip3oProcessor

    return _answer(Blip3oForConditionalGeneration.from_pretrained(source), Blip3oProcessor.from_pretrained(source))


DRAWING: dict[str, Callable[[str], np.ndarray]] = {
    "Blip3oPipeline": blip3o_pipeline,
    "DiffusionPipeline": diffusion_pipeline,
    "AutoPipelineForText2Image": auto_pipeline,
    "AutoPipelineForText2Image.from_pipe": from_pipe,
    "model= and processor= of Auto classes": model_and_processor,
    "prior alone, then decoder alone": prior_then_decoder,
    'pipeline("text-to-image")': text_to_image,
    'pipeline("any-to-any"), drawing': any_to_any,
}
READING: dict[str, Callable[[str], str]] = {
    "Blip3oForConditionalGeneration, Blip3oProcessor": own_classes,
    "AutoModelForImageTextToText, AutoProcessor": auto_model_image_text_to_text,
    "AutoModelForMultimodalLM, AutoProcessor": auto_model_multimodal,
    'pipeline("image-text-to-text")': image_text_to_text,
    'pipeline("any-to-any"), answering': any_to_any_text,
}
NEEDS_TORCHVISION = ('pipeline("any-to-any"), drawing', 'pipeline("any-to-any"), answering')
# A published repository has no `model_index.json`, which these look for. `blip3o-hf convert` writes one.
NEEDS_MODEL_INDEX = ("DiffusionPipeline", "AutoPipelineForText2Image")


def main(out: str, source: str, *names: str) -> None:
    results = {name: (DRAWING | READING)[name](source) for name in names}
    texts = {name: result for name, result in results.items() if isinstance(result, str)}
    np.savez(out, texts=json.dumps(texts), **{name: value for name, value in results.items() if name not in texts})


if __name__ == "__main__":
    main(*sys.argv[1:])
