"""GPU memory of training the 4B and the 8B, computed; and a check of the method on this machine. See README.md.

Forward and backward pass run at full size on tensors without memory (fake tensors), and what PyTorch would hold is
added up during the run. Weights, gradients and optimizer states follow from the number of parameters.
"""
# ruff: noqa: T201 - a script that reports on standard output

import argparse
import copy
import os
import resource
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from full_size import SIZES as FULL_SIZES
from peft import get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_step import (
    NUM_QUERIES,
    PATHS,
    SIZES,
    default_dtype,
    make_batch,
    make_encoder,
    make_model,
    table,
)
from transformers import PreTrainedModel

from blip3o_hf.models.adapters import lora_config

CARDS = (24, 40, 80)  # GiB
USABLE = 0.9  # of a card; the rest is for the CUDA context, kernels' workspaces, fragmentation, DeepSpeed's buckets
GPUS = 8
IMAGES = 16  # of the reference, per GPU and step
MOMENTS, MASTER = 8, 4  # bytes per trained parameter: AdamW's moments; an fp32 copy where the weight is bf16

# Recipes


@dataclass(frozen=True)
class Recipe:
    """
    Args:
        path: of training_step.py; `None` for the UNet of the diffusion decoder.
        lora: parts of the model that LoRA of rank 16 adapts, with the queries; nothing else trains then.
        images: most images per GPU and step to look at.
        draws: whether pictures are drawn and judged in the same process: backbone and diffusion decoder stay loaded,
            LoRA has rank 32 and leaves the queries alone, and a whole transformer has two further sets of weights,
            that of the policy that drew and that of the reference.
    """

    path: str | None
    lora: tuple[str, ...] = ()
    images: int = IMAGES
    draws: bool = False


RECIPES = {
    "pretrain": Recipe("encoder in the step"),
    "sft, cached targets": Recipe("cached targets"),
    "lora, transformer": Recipe("cached targets", ("transformer",)),
    "lora, backbone": Recipe("cached targets", ("backbone",)),
    "lora, both": Recipe("cached targets", ("transformer", "backbone")),
    "dit alone, cached conditions": Recipe("cached conditions"),
    "nft, grpo and dpo, lora": Recipe("cached conditions", ("transformer",), images=48, draws=True),
    "nft, whole transformer": Recipe("cached conditions", images=48, draws=True),
    "decoder's UNet, cached latents": Recipe(None, images=4),
}
UNETS = {
    "8b": FULL_SIZES["8b"].unet,
    "4b": FULL_SIZES["4b"].unet,
    "scaled": {**FULL_SIZES["8b"].unet, "sample_size": 48, "block_out_channels": (128, 256, 512)},
    "tiny": FULL_SIZES["tiny"].unet,
}


@dataclass(frozen=True)
class Precision:
    """Of weights that are frozen and of those that train."""

    frozen: torch.dtype
    trained: torch.dtype


FULL = Precision(torch.float32, torch.float32)
AUTOCAST = Precision(torch.bfloat16, torch.float32)  # the Trainer with `bf16: true`
DEEPSPEED = Precision(torch.bfloat16, torch.bfloat16)  # fp32 copies are the optimizer's


@dataclass(frozen=True)
class Setting:
    """One way to train."""

    recipe: str
    size: str
    images: int
    precision: Precision = FULL
    checkpointing: bool = False


@dataclass
class Parts:
    """
    Args:
        loaded: modules that must be in memory.
        loss: the forward pass on what `make_inputs` gives.
    """

    loaded: list[nn.Module]
    loss: Callable[[Any], torch.Tensor]


def build(setting: Setting) -> Parts:
    """The modules of a recipe, ready to train."""
    recipe, precision = RECIPES[setting.recipe], setting.precision
    if recipe.path is None:
        return build_unet(setting)
    size, only_transformer = SIZES[setting.size], recipe.path == "cached conditions" and not recipe.draws
    transformer = precision.frozen if recipe.lora else precision.trained
    model = make_model(size, precision.frozen, transformer, with_backbone=not only_transformer)
    encoder = make_encoder(size, precision.frozen) if recipe.path == "encoder in the step" else None
    if recipe.lora:
        # which keeps adapters in fp32
        rank = 32 if recipe.draws else 16
        get_peft_model(model, lora_config(model, recipe.lora, rank=rank, train_queries=not recipe.draws))
    elif recipe.draws:
        model.queries.requires_grad_(False)
    if precision == DEEPSPEED:
        model.to(torch.bfloat16)
    if setting.checkpointing:
        model.activation_checkpointing_enable()
    loaded: list[nn.Module] = [model.transformer] if only_transformer else [model, encoder] if encoder else [model]
    if recipe.draws:
        copies = [] if recipe.lora else [copy.deepcopy(model.transformer) for _ in range(2)]
        with default_dtype(precision.frozen):
            loaded += [each.requires_grad_(False) for each in (UNet2DConditionModel(**UNETS[setting.size]), *copies)]
    return Parts(loaded, lambda batch: PATHS[recipe.path](model, batch, encoder))


def build_unet(setting: Setting) -> Parts:
    """The UNet of the diffusion decoder."""
    with default_dtype(setting.precision.trained):
        unet = UNet2DConditionModel(**UNETS[setting.size]).train()
    if setting.checkpointing:
        unet.enable_gradient_checkpointing()

    def loss(inputs: dict[str, Any]) -> torch.Tensor:
        return F.mse_loss(unet(**inputs).sample.float(), inputs["sample"].float())

    return Parts([unet], loss)


def make_inputs(setting: Setting) -> Any:
    """A random batch; for the UNet, latents of its size and the features of their images."""
    if RECIPES[setting.recipe].path:
        return make_batch(SIZES[setting.size], setting.images)
    config, dtype, images = UNETS[setting.size], setting.precision.trained, setting.images
    side, num_times = config["sample_size"], 6
    width = config["projection_class_embeddings_input_dim"] - num_times * config["addition_time_embed_dim"]
    return {
        "sample": torch.randn(images, 4, side, side, dtype=dtype),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(images, NUM_QUERIES, config["cross_attention_dim"], dtype=dtype),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(images, width, dtype=dtype),
            "time_ids": torch.zeros(images, num_times),
        },
    }


def parameters_of(parts: Parts) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """All parameters in memory, and those that train; these have gradients already, as when gradients add up."""
    parameters = [parameter for module in parts.loaded for parameter in module.parameters()]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    return parameters, trained


def run(setting: Setting, parts: Parts) -> None:
    """Forward and backward pass."""
    with torch.autocast("cpu", torch.bfloat16, enabled=setting.precision == AUTOCAST):
        loss = parts.loss(make_inputs(setting))
    loss.backward()


# Computing


class PeakMemory(TorchDispatchMode):
    """Adds up the bytes of tensors that are made inside, and keeps the most that lived at once as `peak`."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self._meet((args, kwargs), is_new=False)
        result = func(*args, **kwargs)
        self._meet(result, is_new=True)
        return result

    def _meet(self, tree, is_new: bool) -> None:
        for tensor in tree_leaves(tree):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    num_bytes = storage.nbytes() if is_new else 0
                    self._known.add(storage._cdata)
                    weakref.finalize(storage, self._forget, storage._cdata, num_bytes)
                    self.now += num_bytes
                    self.peak = max(self.peak, self.now)

    def _forget(self, address: int, num_bytes: int) -> None:
        self._known.discard(address)
        self.now -= num_bytes


@dataclass(frozen=True)
class Need:
    """Bytes of a step at its peak; `activations` is all that forward and backward pass make."""

    trained: int
    weights: int
    gradients: int
    states: int
    activations: int

    def total(self, zero: int = 0) -> float:
        """On one GPU (0), or per GPU with ZeRO-2 or ZeRO-3 over `GPUS` GPUs."""
        share = 1 / GPUS
        weights = self.weights * (share if zero == 3 else 1)
        return weights + (self.gradients + self.states) * (share if zero else 1) + self.activations


def compute(setting: Setting) -> Need:
    """Without memory, and without computing a value."""
    with torch.device("meta"):
        parts = build(setting)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in parts.loaded:
            module.to_empty(device="cpu")
            if isinstance(module, PreTrainedModel):
                module.tie_weights()  # which the move has undone
        parameters, trained = parameters_of(parts)
        with PeakMemory() as memory:
            run(setting, parts)
    count = sum(parameter.numel() for parameter in trained)
    return Need(
        trained=count,
        weights=sum(parameter.nbytes for parameter in parameters),
        gradients=sum(parameter.nbytes for parameter in trained),
        states=count * (MOMENTS + (MASTER if setting.precision == DEEPSPEED else 0)),
        activations=memory.peak,
    )


def measure(setting: Setting) -> int:
    """Bytes that all of it takes in this process at its peak; to be called once, in a process of its own."""
    before = psutil.Process().memory_info().rss
    parts = build(setting)
    _, trained = parameters_of(parts)
    optimizer = torch.optim.AdamW(trained, fused=True)
    optimizer.step()  # allocates its states
    run(setting, parts)
    optimizer.step()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


# Reports


def gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f}"


def most_images(one: Need, many: Need, images: int, card: int) -> int:
    """How many images fit: activations grow by the same amount with each."""
    per_image = (many.activations - one.activations) / (images - 1)
    free = USABLE * card * 2**30 - one.total()
    return 0 if free < 0 else min(images, 1 + int(free / per_image))


def full_size_row(name: str, size: str) -> list[str]:
    """What one recipe takes on one GPU under autocast, and per GPU with ZeRO."""
    images = RECIPES[name].images
    one, many, lean_one, lean_many = (
        compute(Setting(name, size, count, AUTOCAST, checkpointing))
        for checkpointing in (False, True)
        for count in (1, images)
    )
    spread = compute(Setting(name, size, images, DEEPSPEED))
    fits = []
    for card in CARDS:
        plain, lean = most_images(one, many, images, card), most_images(lean_one, lean_many, images, card)
        fits.append(f"{plain} / {lean}" if lean else "no")
    for zero in (2, 3):
        fits.append(f"{gib(spread.total(zero))}" + (" (no)" if spread.total(zero) > USABLE * 80 * 2**30 else ""))
    return [
        name,
        f"{one.trained / 1e6:.1f}",
        gib(one.weights),
        gib(one.gradients + one.states),
        f"{gib(one.activations)} / {gib(lean_one.activations)}",
        f"{images}",
        f"{gib(many.total())} / {gib(lean_many.total())}",
        *fits,
    ]


def report_full_size(size: str) -> str:
    """GiB for all recipes of one model."""
    header = ["recipe", "trained, M", "weights", "gradients, AdamW", "activations of 1 image", "images", "all"]
    header += [*(f"{card} GB" for card in CARDS), f"{GPUS}x80 GB, ZeRO-2", "ZeRO-3"]
    return table(header, [full_size_row(name, size) for name in RECIPES])


CHECKS = (
    *(Setting(name, "scaled", 8) for name in RECIPES),
    Setting("sft, cached targets", "scaled", 8, checkpointing=True),
    Setting("sft, cached targets", "scaled", 8, AUTOCAST),
    Setting("lora, both", "scaled", 8, AUTOCAST),
)


def report_checks(size: str) -> str:
    """
    Computed and measured bytes of real steps on the CPU.

    The C library gives freed tensors back at once here, where by default it would hold many of them.
    """
    environment = {"MALLOC_MMAP_THRESHOLD_": "262144", **os.environ}
    rows = []
    for index, setting in enumerate(CHECKS):
        command = [sys.executable, __file__, *sys.argv[1:], "--alone", str(index)]
        result = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        measured = int(result.stdout.splitlines()[-1])
        computed = compute(replace(setting, size=size)).total()
        name = setting.recipe + ", checkpointing" * setting.checkpointing
        precision = "fp32" if setting.precision == FULL else "bf16 autocast"
        sizes = (f"{computed / 2**20:.0f}", f"{measured / 2**20:.0f}", f"{100 * (computed / measured - 1):+.1f} %")
        rows.append([name, precision, *sizes])
    return table(["MiB", "precision", "computed", "measured", "difference"], rows)


def main() -> None:
    """Print the tables of the full sizes, or the check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with steps that run on this machine's CPU")
    parser.add_argument("--size", choices=("4b", "8b", "scaled", "tiny"), help="only this one (4b and 8b; scaled)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (%(default)s)")
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    small = arguments.size or "scaled"
    if arguments.check and small in FULL_SIZES and small != "tiny":
        parser.error(f"--check runs steps on the CPU. Size {small} is too large for that. Choose scaled or tiny.")
    if arguments.alone is not None:
        print(measure(replace(CHECKS[arguments.alone], size=small)))
    elif arguments.check:
        print(report_checks(small))
    else:
        for size in (arguments.size,) if arguments.size else ("8b", "4b"):
            print(f"### {size.upper()}, GiB\n\n{report_full_size(size)}\n")


if __name__ == "__main__":
    main()
