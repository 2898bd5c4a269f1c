"""Seconds and GPU memory of the full-size models, on random weights in the layout of the published checkpoints.

Nothing is downloaded. The first run writes a repository as the reference publishes it, with a diffusion decoder of
SDXL size; every run loads it with `Blip3oPipeline.from_pretrained` and draws, stage by stage. See README.md.
"""
# ruff: noqa: T201 - a script that reports on standard output

import argparse
import json
import math
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, ModelMixin, UNet2DConditionModel
from PIL import Image
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig

from blip3o_hf import Blip3oConfig, Blip3oForConditionalGeneration, Blip3oPipeline, __version__
from blip3o_hf.checkpoints.published_config import published_config
from blip3o_hf.checkpoints.published_names import OUTPUT_LAYER
from blip3o_hf.checkpoints.published_saving import to_published_layout
from blip3o_hf.models.processing_blip3o import CHAT_TEMPLATE, GENERATION_INSTRUCTION
from blip3o_hf.training.tokenizers import train_tokenizer

PROMPT = "A watercolour of a lighthouse on a cliff at dawn, gulls over the sea and warm light in its windows"
DECODER = "diffusion-decoder"
DECODER_WEIGHTS = "diffusion_pytorch_model.bf16.safetensors"

# Sizes


@dataclass(frozen=True)
class Size:
    """
    Args:
        text, vision, transformer, unet, vae: arguments of the text and vision config of Qwen2.5-VL, of the diffusion
            transformer, the UNet and the VAE.
        tie_word_embeddings: whether the output layer is the input embeddings.
        feature_dim: channels of the image features.
        num_queries: query tokens.
        shard_bytes: most bytes of tensors in one file of the model.
        steps, decoder_steps: denoising steps of the features and of the UNet.
    """

    text: dict[str, Any]
    vision: dict[str, Any]
    transformer: dict[str, Any]
    unet: dict[str, Any]
    vae: dict[str, Any]
    tie_word_embeddings: bool
    feature_dim: int = 1792
    num_queries: int = 64
    shard_bytes: int = 5 * 10**9
    steps: int = 30
    decoder_steps: int = 50


_TEXT = {"vocab_size": 151668, "rms_norm_eps": 1e-6}  # the tokenizer of Qwen2.5-VL with three added tokens
_ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
_UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),  # diffusers' name for the number of heads
    "cross_attention_dim": 1792,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 1792 + 6 * 256,
}
_VAE = {
    "sample_size": 1024,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.13025,
}
SIZES = {
    "8b": Size(
        text={
            **_TEXT,
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "intermediate_size": 18944,
            "rope_parameters": _ROPE,
        },
        vision=_VISION,
        transformer={},  # the released sizes are the defaults
        unet=_UNET,
        vae=_VAE,
        tie_word_embeddings=False,
    ),
    "4b": Size(
        text={
            **_TEXT,
            "hidden_size": 2048,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "intermediate_size": 11008,
            "rope_parameters": _ROPE,
        },
        vision=_VISION,
        transformer={},
        unet=_UNET,
        vae=_VAE,
        tie_word_embeddings=True,
    ),
    "tiny": Size(
        text={
            **_TEXT,
            "vocab_size": 640,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "rope_parameters": {**_ROPE, "mrope_section": [2, 1, 1]},
        },
        vision={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 40,
            "num_heads": 2,
            "fullatt_block_indexes": [1],
        },
        transformer={"dim": 48, "num_layers": 2, "num_attention_heads": 4},
        unet={
            **_UNET,
            "sample_size": 8,
            "block_out_channels": (16, 32, 32),
            "transformer_layers_per_block": 1,
            "attention_head_dim": 2,
            "cross_attention_dim": 24,
            "norm_num_groups": 8,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24 + 6 * 8,
        },
        vae={**_VAE, "sample_size": 64, "block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4},
        tie_word_embeddings=True,
        feature_dim=24,
        num_queries=5,
        shard_bytes=10**5,
        steps=2,
        decoder_steps=2,
    ),
}

# The repository

Shapes = dict[str, tuple[int, ...]]


class RandomBytes:
    """
    Endless bf16 values from N(0, 0.02²): one block, over and over.

    Drawing every value would take minutes. The length of the block is a prime, so that no rows of a matrix are alike.
    """

    def __init__(self):
        values = 0.02 * torch.randn(16_777_213, generator=torch.Generator().manual_seed(0))
        self.block = memoryview(values.bfloat16().view(torch.uint8).numpy())
        self.position = 0

    def read(self, num_bytes: int) -> Iterator[memoryview]:
        """The next bytes, piece by piece."""
        while num_bytes:
            piece = self.block[self.position : self.position + num_bytes]
            yield piece
            num_bytes -= len(piece)
            self.position = (self.position + len(piece)) % len(self.block)


def num_bytes(shapes: Shapes) -> int:
    """Bytes of these tensors in bf16."""
    return sum(2 * math.prod(shape) for shape in shapes.values())


def stored_values(name: str, shape: tuple[int, ...], random: RandomBytes) -> Iterator[bytes | memoryview]:
    """A tensor's bytes: norms are 1, biases 0, and the rest is so small that activations stay finite in bf16."""
    if name.endswith("bias"):
        yield bytes(2 * math.prod(shape))
    elif name.endswith("weight") and len(shape) == 1:
        yield b"\x80\x3f" * math.prod(shape)  # 1.0 in bf16
    else:
        yield from random.read(2 * math.prod(shape))


def write_safetensors(path: Path, shapes: Shapes, random: RandomBytes, progress: tqdm) -> None:
    """A safetensors file, written from front to back: no tensor is ever whole in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (begin, end)}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, shape in shapes.items():
            for piece in stored_values(name, shape, random):
                file.write(piece)
                progress.update(len(piece))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that knows the words of the prompt, so that the prompt has about its usual length in tokens."""
    texts = [CHAT_TEMPLATE, GENERATION_INSTRUCTION, PROMPT]
    return train_tokenizer(texts, vocab_size=640, max_length=512)


def make_config(size: Size, tokenizer: PreTrainedTokenizerFast) -> Blip3oConfig:
    """The model's config, with the tokenizer's ids."""
    token_id = tokenizer.convert_tokens_to_ids
    text = {"bos_token_id": token_id("<|endoftext|>"), "eos_token_id": token_id("<|im_end|>")}
    backbone = Qwen2_5_VLConfig(
        text_config={**size.text, **text, "pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 128000},
        vision_config={**size.vision, "out_hidden_size": size.text["hidden_size"]},
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=size.tie_word_embeddings,
    )
    return Blip3oConfig(
        backbone_config=backbone,
        transformer_config=size.transformer,
        feature_dim=size.feature_dim,
        num_queries=size.num_queries,
        dtype="bfloat16",
    )


def model_shapes(config: Blip3oConfig) -> Shapes:
    """Every tensor of the model by its published name; the target encoder is left out."""
    with torch.device("meta"):
        model = Blip3oForConditionalGeneration(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in to_published_layout(model.state_dict()).items()}
    if config.tie_word_embeddings:
        del shapes[OUTPUT_LAYER]
    return shapes


def make_decoder(size: Size) -> dict[str, ModelMixin]:
    """UNet and VAE on the meta device, without memory."""
    with torch.device("meta"):
        return {"unet": UNet2DConditionModel(**size.unet), "vae": AutoencoderKL(**size.vae)}


def split_shards(shapes: Shapes, shard_bytes: int) -> dict[str, Shapes]:
    """Tensors by the name of their file, in their order."""
    shards: list[Shapes] = [{}]
    for name, shape in shapes.items():
        if shards[-1] and num_bytes(shards[-1]) + num_bytes({name: shape}) > shard_bytes:
            shards.append({})
        shards[-1][name] = shape
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, start=1)}


def prepare_repository(work: Path, name: str, size: Size) -> Path:
    """
    The repository of this size in `work`: written, or found finished.

    It takes its name when it is whole; what an interrupted run wrote is removed.

    Raises:
        OSError: when the disk lacks space.
        FileExistsError: when something else has its name.
    """
    folder = work / f"blip3o-{name}-random"
    tokenizer = make_tokenizer()
    config = make_config(size, tokenizer)
    published = {"model_type": "blip3o_qwen_inference", "architectures": ["blip3oQwenForInferenceLM"]}
    settings = json.dumps(published_config(config) | published, indent=2, sort_keys=True)
    if folder.exists():
        if not (folder / "config.json").is_file() or (folder / "config.json").read_text() != settings:
            raise FileExistsError(
                f"The benchmark's repository must be one that it wrote for this size. {folder} is another. Move it "
                f"away, or choose another --work."
            )
        print(f"Found {folder}.")
        return folder

    shards = split_shards(model_shapes(config), size.shard_bytes)
    decoder = make_decoder(size)
    files = dict(shards)
    for part, model in decoder.items():
        shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        files[f"{DECODER}/{part}/{DECODER_WEIGHTS}"] = shapes
    total = sum(map(num_bytes, files.values()))
    needed = total + 10**7  # configs, tokenizer and headers
    existing = next(path for path in (work, *work.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(
            f"The disk must have room for the repository: {needed:,} bytes. At {existing} {free:,} are free. Choose "
            f"another --work."
        )

    work.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=work, prefix=f".{folder.name}-"))
    try:
        for part, model in decoder.items():
            model.save_config(temporary / DECODER / part)
        scheduler = EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        )
        scheduler.save_config(temporary / DECODER / "scheduler")
        tokenizer.save_pretrained(temporary)
        index = {
            "metadata": {"total_size": sum(map(num_bytes, shards.values()))},
            "weight_map": {key: file for file, shapes in shards.items() for key in shapes},
        }
        (temporary / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
        random = RandomBytes()
        with tqdm(total=total, unit="B", unit_scale=True, desc=f"Writing {folder.name}") as progress:
            for file, shapes in files.items():
                write_safetensors(temporary / file, shapes, random, progress)
        (temporary / "config.json").write_text(settings)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


# Measuring


@dataclass
class Stopwatch:
    """
    Seconds, and peak GPU memory where there is a GPU, of named stages.

    Args:
        device: where the work is done.
        seconds: of every run of each stage.
        peak_bytes: the most memory that tensors took during a stage, weights included.
    """

    device: torch.device
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block, and wait for the GPU before and after."""
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        yield
        if on_gpu:
            torch.cuda.synchronize(self.device)
            peak = torch.cuda.max_memory_allocated(self.device)
            self.peak_bytes[name] = max(peak, self.peak_bytes.get(name, 0))
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)

    def table(self) -> str:
        """One row per stage, in Markdown."""
        lines = ["| stage | runs | seconds, mean | fastest | slowest | peak GPU memory |", "|---|--:|--:|--:|--:|--:|"]
        for name, seconds in self.seconds.items():
            peak = f"{self.peak_bytes[name] / 2**30:.2f} GiB" if name in self.peak_bytes else "no CUDA"
            mean = sum(seconds) / len(seconds)
            times = " | ".join(f"{value:.3f}" for value in (mean, min(seconds), max(seconds)))
            lines.append(f"| {name} | {len(seconds)} | {times} | {peak} |")
        return "\n".join(lines)


def load(folder: Path, size: Size, offload: bool, watch: Stopwatch) -> Blip3oPipeline:
    """The pipeline, ready to draw."""
    with watch.stage("from_pretrained"):
        pipe = Blip3oPipeline.from_pretrained(
            folder,
            dtype=torch.bfloat16,
            default_num_inference_steps=size.steps,
            default_decoder_num_inference_steps=size.decoder_steps,
        )
    with watch.stage("enable_model_cpu_offload" if offload else f"to {watch.device.type}"):
        if offload:
            pipe.enable_model_cpu_offload(device=watch.device)
        else:
            pipe.to(watch.device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def draw_in_stages(pipe: Blip3oPipeline, generator: torch.Generator, watch: Stopwatch) -> Image.Image:
    """
    What `pipe(PROMPT, generator=generator)` does after its first call, each stage timed.

    Raises:
        FloatingPointError: when features or pixels are not finite.
    """
    settings, decoder = pipe.config, pipe.decoder_pipeline
    with watch.stage("condition"):
        condition = pipe.encode_prompt([PROMPT])
    with watch.stage("features"):
        features = pipe.generate_features(
            condition,
            settings.default_num_inference_steps,
            settings.default_guidance_scale,
            generator=generator,
        )
    with watch.stage("UNet"):
        latents = decoder.denoise(
            decoder.prepare_latents(1, *decoder.image_size(), generator),
            features,
            pipe.null_features,
            settings.default_decoder_num_inference_steps,
            settings.default_decoder_guidance_scale,
        )
    with watch.stage("VAE"):
        pixels = decoder.decode_latents(latents)
    with watch.stage("PIL image"):
        (image,) = pipe.image_processor.postprocess(pixels, output_type="pil")
        pipe.maybe_free_model_hooks()
    for name, tensor in (("features", features), ("pixels", pixels)):
        if not tensor.isfinite().all():
            raise FloatingPointError(f"The {name} must be finite numbers. They hold NaN or infinity.")
    return image


def measure(pipe: Blip3oPipeline, num_images: int, watch: Stopwatch) -> int:
    """
    Draw whole and in stages, after a call to warm up.

    Returns:
        The largest difference between an image's 8-bit values drawn whole and in stages.

    Raises:
        ValueError: when an image has the wrong size.
    """
    height, width = pipe.decoder_pipeline.image_size()
    with watch.stage("first call, with null features"):
        pipe(PROMPT, generator=torch.Generator().manual_seed(0))
    largest = 0
    for seed in tqdm(range(num_images), desc="Drawing"):
        with watch.stage("whole call"):
            whole = pipe(PROMPT, generator=torch.Generator().manual_seed(seed)).images[0]
        staged = draw_in_stages(pipe, torch.Generator().manual_seed(seed), watch)
        for image in (whole, staged):
            if image.size != (width, height):
                raise ValueError(f"An image must have {width} x {height} pixels. Got {image.size}.")
        largest = max(largest, int(np.abs(np.asarray(whole, int) - np.asarray(staged, int)).max()))
    pipe.null_features = None
    with watch.stage("null features, once"):
        pipe.prepare_null_features(torch.Generator().manual_seed(0))
    pipe.maybe_free_model_hooks()
    return largest


def describe(pipe: Blip3oPipeline, name: str, offload: bool, device: torch.device) -> dict[str, Any]:
    """What was measured, and on what."""
    packages = ("torch", "transformers", "diffusers", "accelerate")
    steps = (pipe.config.default_num_inference_steps, pipe.config.default_decoder_num_inference_steps)
    guidance = (pipe.config.default_guidance_scale, pipe.config.default_decoder_guidance_scale)
    parts = {"model": pipe.model, "unet": pipe.unet, "vae": pipe.vae}
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " CPU",
        "CUDA": torch.version.cuda if device.type == "cuda" else None,
        "Python": platform.python_version(),
        "blip3o_hf": __version__,
        **{package: version(package) for package in packages},
        "size": name,
        "parameters": {part: sum(p.numel() for p in model.parameters()) for part, model in parts.items()},
        "dtype": str(pipe.model.dtype).removeprefix("torch."),
        "model CPU offload": offload,
        "pixels": list(pipe.decoder_pipeline.image_size()),
        "prompt tokens": pipe.processor.encode_prompts([PROMPT])["input_ids"].shape[1],
        "steps of features and UNet": list(steps),
        "guidance of features and UNet": list(guidance),
    }


def main() -> None:
    """Write or find the repository, load it, draw, and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--size", choices=("4b", "8b"), default="8b", help="published model to imitate (%(default)s)")
    sizes.add_argument(
        "--tiny", dest="size", action="store_const", const="tiny", help="toy sizes, to try this script without a GPU"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the repository; kept for later runs")
    parser.add_argument("--images", type=int, default=3, help="images to time, at least 1 (%(default)s)")
    parser.add_argument("--offload", action="store_true", help="keep on the GPU only the part that works")
    parser.add_argument("--output", type=Path, help="JSON report (WORK/full_size_SIZE.json)")
    arguments = parser.parse_args()
    work, name = arguments.work.resolve(), arguments.size
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and (name != "tiny" or arguments.offload):
        parser.error("full sizes and --offload need a CUDA GPU, and there is none; --tiny alone runs without")
    if arguments.images < 1:
        parser.error(f"--images must be at least 1, not {arguments.images}")

    output = arguments.output or work / f"full_size_{name}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = prepare_repository(work, name, SIZES[name])
    watch = Stopwatch(device)
    pipe = load(folder, SIZES[name], arguments.offload, watch)
    settings = describe(pipe, name, arguments.offload, device)
    print(*(f"- {key}: {value}" for key, value in settings.items()), sep="\n")
    largest = measure(pipe, arguments.images, watch)
    report = {
        "settings": settings,
        "stages": {
            stage: {"seconds": seconds, "peak_gpu_bytes": watch.peak_bytes.get(stage)}
            for stage, seconds in watch.seconds.items()
        },
        "largest_difference_whole_to_staged": largest,
    }
    output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\n{watch.table()}\n\nDrawn whole and in stages, 8-bit values differ by at most {largest}. See {output}.")


if __name__ == "__main__":
    main()
