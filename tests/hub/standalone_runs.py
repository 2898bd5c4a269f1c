"""What people do with a repository that carries its code, in a process where the package cannot be imported.

The arguments are `OUT REPOSITORY PUSHED OTHER DIFFUSION SRC`. What it drew, answered and was refused goes to `OUT`.
`PUSHED` is the repository's id on the Hub, `OTHER` a repository with other code, `DIFFUSION` one that decodes by
diffusion. The package in `SRC` is imported last.
"""

import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    pipeline,
)

PROMPT = "two red circles"
STEPS = 2
TRUST = {"trust_remote_code": True}


def refusal(action) -> str:
    """The error that an action raises, or an empty text."""
    try:
        action()
    except (ImportError, OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def steps(pipe) -> dict[str, int]:
    decodes_by_steps = {} if pipe.unet is None else {"decoder_num_inference_steps": STEPS}
    return {"num_inference_steps": STEPS, **decodes_by_steps}


def drawn(pipe) -> np.ndarray:
    """By a pipeline of diffusers."""
    pipe.set_progress_bar_config(disable=True)
    return np.asarray(pipe(PROMPT, generator=torch.Generator().manual_seed(0), **steps(pipe)).images[0])


def drawn_by_task(draw) -> np.ndarray:
    """By the pipeline of transformers."""
    return np.asarray(draw(PROMPT, seed=0, **steps(draw.drawing))["image"])


def drawn_by_model(model, processor) -> np.ndarray:
    text = processor.render_prompt(PROMPT)
    images = model.generate(
        **processor(text=[text], return_tensors="pt"),
        generation_mode="image",
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=STEPS,
    )
    (image,) = processor.post_process_multimodal_output(images, generation_mode="image")
    return np.asarray(image)


def question() -> list[dict]:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "How many circles are there?"}]
    return [{"role": "user", "content": content}]


def answered(model, processor) -> str:
    inputs = processor.apply_chat_template(
        question(), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    answer = model.generate(**inputs, max_new_tokens=4)[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(answer, skip_special_tokens=True)[0]


def answered_by_task(answer) -> str:
    return answer(text=question(), max_new_tokens=4, return_full_text=False)[0]["generated_text"]


def loaded() -> list[str]:
    """Modules that hold code of a repository."""
    return [name for name, module in sys.modules.items() if "blip3o" in name and module is not None]


def refusals(repository: str) -> dict[str, str]:
    """Without `trust_remote_code`."""
    doors = {
        "AutoConfig": AutoConfig.from_pretrained,
        "AutoModelForImageTextToText": AutoModelForImageTextToText.from_pretrained,
        "AutoProcessor": AutoProcessor.from_pretrained,
        "text-to-image": lambda source: pipeline("text-to-image", model=source),
        "DiffusionPipeline": DiffusionPipeline.from_pretrained,
    }
    return {name: refusal(lambda door=door: door(repository)) for name, door in doors.items()}


def without_the_package(out: Path, repository: str, pushed: str, other: str, diffusion: str) -> tuple[dict, dict]:
    """Images and texts."""
    texts = {"package": refusal(lambda: import_module("blip3o_hf"))}
    texts["refusals"] = refusals(repository) | {f"{door} of the Hub": text for door, text in refusals(pushed).items()}
    texts["loaded by what was refused"] = loaded()
    model = AutoModelForImageTextToText.from_pretrained(repository, **TRUST)
    processor = AutoProcessor.from_pretrained(repository, **TRUST)
    texts["answer"] = answered(model, processor)
    texts["answer of AutoModelForMultimodalLM"] = answered(
        AutoModelForMultimodalLM.from_pretrained(repository, **TRUST), processor
    )
    texts["answer of image-text-to-text"] = answered_by_task(pipeline("image-text-to-text", model=repository, **TRUST))
    images = {"generate": drawn_by_model(model, processor)}
    draw = pipeline("text-to-image", model=repository, **TRUST)
    images["text-to-image"] = drawn_by_task(draw)
    images["no task"] = drawn_by_task(pipeline(model=repository, **TRUST))
    texts["one class"] = [type(model) is type(draw.model), type(draw.drawing.model) is type(model)]

    model.save_pretrained(out / "model")
    processor.save_pretrained(out / "model")
    texts["answer of the saved model"] = answered(
        AutoModelForImageTextToText.from_pretrained(out / "model", **TRUST),
        AutoProcessor.from_pretrained(out / "model", **TRUST),
    )

    model, processor = (own.from_pretrained(pushed, **TRUST) for own in (AutoModelForImageTextToText, AutoProcessor))
    texts["answer of the Hub"] = answered(model, processor)
    images["generate of the Hub"] = drawn_by_model(model, processor)
    images["text-to-image of the Hub"] = drawn_by_task(pipeline("text-to-image", model=pushed, **TRUST))
    images["DiffusionPipeline of the Hub"] = drawn(DiffusionPipeline.from_pretrained(pushed, **TRUST))
    texts["loaded by what was trusted"] = loaded()

    images["diffusion: text-to-image"] = drawn_by_task(pipeline("text-to-image", model=diffusion, **TRUST))
    images["diffusion: DiffusionPipeline"] = drawn(DiffusionPipeline.from_pretrained(diffusion, **TRUST))

    pipe = DiffusionPipeline.from_pretrained(repository, **TRUST)
    images["DiffusionPipeline"] = drawn(pipe)
    texts["LoRA"] = refusal(lambda: pipe.load_lora_weights(repository))
    pipe.save_pretrained(out / "pipeline")
    texts["code"] = []
    for source in (repository, other, repository):
        again = DiffusionPipeline.from_pretrained(source, **TRUST)
        texts["code"].append("MARK" in type(again).decode_features.__globals__)
    return images, texts


def with_the_package(repository: str, pushed: str) -> tuple[dict, dict]:
    """Images and texts, without `trust_remote_code` where nothing else is said."""
    del sys.modules["blip3o_hf"]
    from blip3o_hf import Blip3oPipeline

    model = AutoModelForImageTextToText.from_pretrained(repository)
    processor = AutoProcessor.from_pretrained(repository)
    draw = pipeline("text-to-image", model=repository)
    own = (model, model.config, processor, draw, draw.model, draw.drawing, draw.drawing.decoder)
    texts = {
        "own classes": [type(part).__module__.partition(".")[0] for part in own],
        "own answer": answered(model, processor),
        "own answer of image-text-to-text": answered_by_task(pipeline("image-text-to-text", model=repository)),
        "refusal of DiffusionPipeline": refusal(lambda: DiffusionPipeline.from_pretrained(repository)),
    }
    images = {
        "own Blip3oPipeline": drawn(Blip3oPipeline.from_pretrained(repository)),
        "own Blip3oPipeline of the Hub": drawn(Blip3oPipeline.from_pretrained(pushed)),
        "own text-to-image": drawn_by_task(draw),
        "own text-to-image, trusting": drawn_by_task(pipeline("text-to-image", model=repository, **TRUST)),
        "own DiffusionPipeline, trusting": drawn(DiffusionPipeline.from_pretrained(repository, **TRUST)),
    }
    return images, texts


def main(out: Path, repository: str, pushed: str, other: str, diffusion: str, src: str) -> None:
    torch.set_num_threads(1)
    images, texts = without_the_package(out, repository, pushed, other, diffusion)
    sys.path.insert(0, src)
    own_images, own_texts = with_the_package(repository, pushed)
    np.savez(out / "images.npz", **images, **own_images)
    (out / "texts.json").write_text(json.dumps(texts | own_texts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
