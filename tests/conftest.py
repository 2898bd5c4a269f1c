"""Tiny random components, built in memory and the same in every run; nothing is downloaded."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, CLIPVisionConfig, CLIPVisionModel, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from blip3o_hf.models.configuration_blip3o import Blip3oConfig
from blip3o_hf.models.decoder_patch import Blip3oPatchDecoder
from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration
from blip3o_hf.models.processing_blip3o import Blip3oProcessor
from blip3o_hf.pipelines.pipeline_blip3o import Blip3oPipeline
from blip3o_hf.schedulers.scheduling_feature_flow import Blip3oFlowScheduler
from blip3o_hf.shapes import render, sample_example, sample_question
from blip3o_hf.training.tokenizers import train_tokenizer

torch.set_num_threads(1)

CORPUS = (
    "You are a helpful assistant. system user assistant",
    "Please generate image based on the following caption: two red circles above a small blue square",
    "How many circles are there? There are three green triangles to the left of the yellow circle.",
)
FEATURE_DIM = 16
FEATURE_SIZE = 4


@pytest.fixture(autouse=True)
def _seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(CORPUS, vocab_size=400, max_length=512)


@pytest.fixture(scope="session")
def make_processor(tokenizer) -> Callable[..., Blip3oProcessor]:
    """`make_processor(backbone="qwen", **settings)`."""

    def make(backbone: str = "qwen", **settings) -> Blip3oProcessor:
        if backbone == "llava":
            square = {"height": 32, "width": 32}
            image_processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square)
            return Blip3oProcessor(image_processor, tokenizer, num_image_tokens=16, **settings)
        image_processor = Qwen2VLImageProcessorPil(
            patch_size=8,
            merge_size=1,
            temporal_patch_size=1,
            size={"shortest_edge": 4096, "longest_edge": 4096},
        )
        return Blip3oProcessor(image_processor, tokenizer, **settings)

    return make


@pytest.fixture(scope="session")
def processor(make_processor) -> Blip3oProcessor:
    return make_processor()


@pytest.fixture(scope="session")
def make_backbone_config(tokenizer) -> Callable:
    """`make_backbone_config(kind="qwen", tied=True)`: a tiny Qwen2.5-VL, LLaVA, or a Llama that reads text only."""

    def make(kind: str = "qwen", tied: bool = True):
        text = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        if kind == "llama":
            return AutoConfig.for_model("llama", **text, tie_word_embeddings=tied)
        if kind == "llava":
            vision = {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 32,
                "patch_size": 8,
            }
            return AutoConfig.for_model(
                "llava",
                text_config=AutoConfig.for_model("qwen3", **text, head_dim=8, tie_word_embeddings=tied),
                vision_config=AutoConfig.for_model("clip_vision_model", **vision),
                image_token_index=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
                image_seq_length=16,
                vision_feature_layer=-1,
                tie_word_embeddings=tied,
            )
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
        ids = {
            f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
            for name, token in (
                ("image", "<|image_pad|>"),
                ("video", "<|video_pad|>"),
                ("vision_start", "<|vision_start|>"),
                ("vision_end", "<|vision_end|>"),
            )
        }
        vision = {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 8,
            "spatial_merge_size": 1,
            "temporal_patch_size": 1,
            "window_size": 32,
            "fullatt_block_indexes": [1],
            "out_hidden_size": 32,
        }
        return AutoConfig.for_model(
            "qwen2_5_vl",
            text_config={**text, "rope_parameters": rope},
            vision_config=vision,
            tie_word_embeddings=tied,
            **ids,
        )

    return make


@pytest.fixture(scope="session")
def make_config(make_backbone_config) -> Callable[..., Blip3oConfig]:
    """`make_config(backbone="qwen", tied=True, **settings)`."""

    def make(backbone: str = "qwen", tied: bool = True, **settings) -> Blip3oConfig:
        defaults = {
            "transformer_config": {
                "dim": 32,
                "num_layers": 2,
                "num_attention_heads": 2,
                "multiple_of": 16,
                "gate_init": 0.5,
            },
            "num_queries": 5,
            "feature_dim": FEATURE_DIM,
            "feature_size": FEATURE_SIZE,
        }
        return Blip3oConfig(backbone_config=make_backbone_config(backbone, tied), **{**defaults, **settings})

    return make


@pytest.fixture(scope="session")
def make_model(make_config) -> Callable[..., Blip3oForConditionalGeneration]:
    """`make_model(**settings of make_config)`: in evaluation mode, the same weights every time."""

    def make(**settings) -> Blip3oForConditionalGeneration:
        torch.manual_seed(0)
        return Blip3oForConditionalGeneration(make_config(**settings)).eval()

    return make


@pytest.fixture(scope="session")
def make_llava_processor() -> Callable[..., LlavaProcessor]:
    """`make_llava_processor(tokenizer)`: that of the backbone `llava`, with a chat template."""
    template = (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<|image_pad|>{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )

    def make(tokenizer) -> LlavaProcessor:
        return LlavaProcessor(
            CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
            tokenizer,
            patch_size=8,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            image_token="<|image_pad|>",
            chat_template=template,
        )

    return make


@pytest.fixture(scope="session")
def make_tower(tmp_path_factory) -> Callable[..., str]:
    """`make_tower(patch_size=8)`: folder of a vision tower of 32 pixels, whose features fit the tiny model."""

    def make(patch_size: int = 8) -> str:
        folder = tmp_path_factory.mktemp("tower")
        torch.manual_seed(0)
        sizes = {"hidden_size": FEATURE_DIM, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=patch_size)).save_pretrained(folder)
        square = {"height": 32, "width": 32}
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture
def model(make_model) -> Blip3oForConditionalGeneration:
    return make_model()


@pytest.fixture(scope="session")
def make_decoder() -> Callable[..., Blip3oPatchDecoder]:
    def make(**settings) -> Blip3oPatchDecoder:
        torch.manual_seed(0)
        defaults = {
            "in_channels": FEATURE_DIM,
            "sample_size": FEATURE_SIZE,
            "patch_size": 4,
            "dim": 16,
            "num_attention_heads": 2,
        }
        return Blip3oPatchDecoder(**{**defaults, **settings}).eval()

    return make


@pytest.fixture(scope="session")
def make_pipeline(make_model, make_processor, make_decoder) -> Callable[..., Blip3oPipeline]:
    """`make_pipeline(scheduler=..., decoder=..., **settings of make_config)`."""

    def make(scheduler=None, decoder="patch", **settings) -> Blip3oPipeline:
        pipeline = Blip3oPipeline(
            model=make_model(**settings),
            processor=make_processor(settings.get("backbone", "qwen")),
            scheduler=Blip3oFlowScheduler() if scheduler is None else scheduler,
            decoder=make_decoder() if decoder == "patch" else decoder,
            default_num_inference_steps=4,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


@pytest.fixture
def pipeline(make_pipeline) -> Blip3oPipeline:
    return make_pipeline()


@pytest.fixture(scope="session")
def make_image() -> Callable[..., Image.Image]:
    """`make_image(seed=0)`: a 64 x 64 picture of random pixels."""

    def make(seed: int = 0) -> Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    return make


@pytest.fixture(scope="session")
def assert_close() -> Callable:
    """`assert_close(actual, expected, tolerance=1e-5)`, relative to the largest expected value."""

    def check(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
        scale = expected.abs().max().item()
        torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)

    return check


@pytest.fixture
def shapes_task(tmp_path):
    """A folder with a task of 24 questions about held-out scenes."""
    datasets = pytest.importorskip("datasets")
    rows = []
    for number in range(24):
        rng = np.random.default_rng((7, number))
        scene = sample_example(rng, split="test").scene
        question = sample_question(scene, rng)
        rows.append({"image": Image.fromarray(render(scene)), "question": question.text, "answer": question.answer})
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "shapes.parquet")
    (tmp_path / "utils.py").write_text("def visual(doc):\n    return [doc['image'].convert('RGB')]\n")
    (tmp_path / "shapes_questions.yaml").write_text(
        f"task: shapes_questions\ndataset_path: parquet\ndataset_kwargs:\n  data_files:\n"
        f"    test: {tmp_path}/shapes.parquet\ntest_split: test\noutput_type: generate_until\n"
        "doc_to_visual: !function utils.visual\ndoc_to_text: question\ndoc_to_target: answer\n"
        "generation_kwargs:\n  max_new_tokens: 20\nmetric_list:\n  - metric: exact_match\n    aggregation: mean\n"
        "    higher_is_better: true\n    ignore_case: true\nmetadata:\n  version: 0.1\n"
    )
    return tmp_path
