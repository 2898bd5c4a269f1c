"""Pictures of the tiny world with their prompts, and tiny models in folders."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
)

from blip3o_hf.shapes import render, sample_scene
from blip3o_hf.shapes.benchmark import held_out_prompts

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CONTEXT = 12


@pytest.fixture(scope="session")
def shown() -> tuple[list[str], list[Image.Image]]:
    """Four prompts of the tiny world, on counts, colours and places, and a true picture of each."""
    prompts = held_out_prompts(4)[9:25:4]
    scenes = [sample_scene(prompt, np.random.default_rng(0), split="test") for prompt in prompts]
    return [prompt.text for prompt in prompts], [Image.fromarray(render(scene)) for scene in scenes]


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> str:
    """A random CLIP with a context of 12 tokens, whose tokenizer has letters only, and its processor."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={name: index for index, name in enumerate(names)}, merges=[])
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT, **ids}
    vision = {**SMALL, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory, tokenizer, make_backbone_config: Callable, make_llava_processor: Callable) -> str:
    """A random LLaVA with its processor: a chat model that sees, and knows the words yes and no."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llava")
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["yes", "no"])
    config = make_backbone_config("llava")
    config.text_config.vocab_size = len(tokenizer)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    make_llava_processor(tokenizer).save_pretrained(folder)
    return str(folder)
