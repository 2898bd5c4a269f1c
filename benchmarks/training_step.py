"""One training step as the reference does it and as this package does it: time, memory, FLOPs. See README.md.

The 8B in its proportions at a size for a CPU, or at full size on a GPU, on random weights. Nothing is downloaded.
"""
# ruff: noqa: T201 - a script that reports on standard output

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from full_size import SIZES as FULL_SIZES
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig

from blip3o_hf import Blip3oConfig, Blip3oForConditionalGeneration, EvaClipVisionConfig, EvaClipVisionModel
from blip3o_hf.models.target_encoder import extract_features

NUM_QUERIES = 64
FEATURE_SIZE = 8
# Slower path, faster path, and how many times as long the slower one should take at least.
COMPARISONS = (
    ("naive", "cached targets", 4.0),
    ("naive, no encoder", "cached targets", 2.0),
    ("naive", "cached conditions", 20.0),
)
MOST_MEMORY = 0.35  # of cached targets, as a share of naive
MOST_DIFFERENCE = 1e-5  # of gradients, as a share of the largest
ROUNDING = 1e-6  # a gradient below this share of the largest of all is rounding

# Sizes


@dataclass(frozen=True)
class Size:
    """
    Args:
        text, vision, transformer, encoder: arguments of the text and vision config of Qwen2.5-VL, of the diffusion
            transformer and of the target encoder; the published sizes by default.
        tie_word_embeddings: whether the output layer is the input embeddings.
        text_tokens: length of the prompt, its `[IMG]` token included.
    """

    text: dict[str, Any]
    vision: dict[str, Any]
    transformer: dict[str, Any] = field(default_factory=dict)
    encoder: dict[str, Any] = field(default_factory=dict)
    tie_word_embeddings: bool = False
    text_tokens: int = 193


_SMALL_VISION = {"depth": 1, "hidden_size": 16, "num_heads": 1}  # training does not run it
_ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
SIZES = {
    **{
        name: Size(full.text, full.vision, tie_word_embeddings=full.tie_word_embeddings)
        for name, full in FULL_SIZES.items()
        if name in ("4b", "8b")
    },
    "scaled": Size(
        text={
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4736,
            "num_hidden_layers": 10,
            "num_attention_heads": 7,
            "num_key_value_heads": 1,
            "rope_parameters": _ROPE,
        },
        vision=_SMALL_VISION,
        transformer={"dim": 448, "num_attention_heads": 7, "num_layers": 7, "multiple_of": 64},
        encoder={"hidden_size": 448, "intermediate_size": 3840, "num_attention_heads": 4, "num_hidden_layers": 20},
    ),
    "tiny": Size(
        text={
            "vocab_size": 4096,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "rope_parameters": _ROPE,
        },
        vision=_SMALL_VISION,
        transformer={"dim": 64, "num_attention_heads": 4, "num_layers": 2, "multiple_of": 64},
        encoder={"hidden_size": 64, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 2},
        text_tokens=65,
    ),
}

Model = Blip3oForConditionalGeneration


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New tensors have this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


def make_model(
    size: Size, frozen: torch.dtype = torch.float32, trained: torch.dtype = torch.float32, with_backbone: bool = True
) -> Model:
    """
    The model with a frozen backbone.

    Args:
        size: widths and depths.
        frozen: precision of the backbone.
        trained: precision of queries and diffusion transformer.
        with_backbone: False puts the backbone on the meta device: it takes no memory, and cannot run.
    """
    encoder = EvaClipVisionConfig(**size.encoder)
    backbone = Qwen2_5_VLConfig(
        text_config={**size.text, "rms_norm_eps": 1e-6, "bos_token_id": None, "eos_token_id": None},
        vision_config={**size.vision, "out_hidden_size": size.text["hidden_size"]},
        tie_word_embeddings=size.tie_word_embeddings,
    )
    config = Blip3oConfig(
        backbone_config=backbone,
        transformer_config={**size.transformer, "gate_init": 0.5},  # at 0, few gradients would reach the queries
        num_queries=NUM_QUERIES,
        feature_dim=encoder.hidden_size,
        feature_size=FEATURE_SIZE,
        condition_dropout=0.0,
    )
    with torch.device(torch.get_default_device() if with_backbone else "meta"):
        frozen_backbone = AutoModelForImageTextToText.from_config(backbone, dtype=frozen).requires_grad_(False)
    with default_dtype(trained):
        return Blip3oForConditionalGeneration(config, backbone=frozen_backbone).train()


def make_encoder(size: Size, dtype: torch.dtype = torch.float32) -> EvaClipVisionModel:
    """The frozen target encoder."""
    encoder = EvaClipVisionModel._from_config(EvaClipVisionConfig(**size.encoder), dtype=dtype)
    return encoder.eval().requires_grad_(False)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that train, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# The paths


@dataclass
class Batch:
    """
    Args:
        input_ids (`[B, L]`), pixel_values (`[B, 3, H, W]`): captions and images.
        features (`[B, C, H, W]`), condition (`[B, num_queries, hidden_size]`): cached targets and conditions.
        noise (`[B, C, H, W]`), sigma (`[B]`): the same for every path, so that gradients can be compared.
    """

    input_ids: torch.Tensor
    pixel_values: torch.Tensor
    features: torch.Tensor
    condition: torch.Tensor
    noise: torch.Tensor
    sigma: torch.Tensor


def make_batch(size: Size, images: int) -> Batch:
    """A random batch; time, memory and gradients do not ask whether what is cached belongs to the images."""
    encoder = EvaClipVisionConfig(**size.encoder)
    features = (images, encoder.hidden_size, FEATURE_SIZE, FEATURE_SIZE)
    return Batch(
        input_ids=torch.randint(size.text["vocab_size"], (images, size.text_tokens)),
        pixel_values=torch.randn(images, 3, encoder.image_size, encoder.image_size),
        features=torch.randn(features),
        condition=torch.randn(images, NUM_QUERIES, size.text["hidden_size"]),
        noise=torch.randn(features),
        sigma=torch.linspace(0.2, 0.8, images),
    )


def flow_loss(model: Model, batch: Batch, condition: torch.Tensor) -> torch.Tensor:
    """The loss of the diffusion transformer, which all paths share."""
    return model(target_features=batch.features, condition=condition, noise=batch.noise, sigma=batch.sigma).loss


def encoded(encoder: EvaClipVisionModel, batch: Batch) -> Batch:
    """The batch with targets that the encoder computes now."""
    return replace(batch, features=extract_features(encoder, batch.pixel_values, FEATURE_SIZE))


def naive_without_encoder(model: Model, batch: Batch, encoder: None = None) -> torch.Tensor:
    """Prompt and queries in one sequence, all of it with gradient; logits and a cross-entropy that nobody uses."""
    prompt = model.get_input_embeddings()(batch.input_ids)
    sequence = torch.cat([prompt, model.queries(len(prompt)).to(prompt.dtype)], dim=1)
    hidden_states = model.get_decoder()(inputs_embeds=sequence, use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(hidden_states).float()
    F.cross_entropy(logits[:, : batch.input_ids.shape[1] - 1].flatten(0, 1), batch.input_ids[:, 1:].flatten())
    return flow_loss(model, batch, hidden_states[:, -NUM_QUERIES:])


def naive(model: Model, batch: Batch, encoder: EvaClipVisionModel) -> torch.Tensor:
    """The same, and the images are encoded in every step."""
    return naive_without_encoder(model, encoded(encoder, batch))


def naive_with_checkpointing(model: Model, batch: Batch, encoder: EvaClipVisionModel) -> torch.Tensor:
    """The same with gradient checkpointing, which the reference's scripts switch on."""
    model.backbone.activation_checkpointing_enable()
    model.transformer.enable_gradient_checkpointing()
    loss = naive(model, batch, encoder)
    model.backbone.activation_checkpointing_disable()
    model.transformer.disable_gradient_checkpointing()
    return loss


def cached_targets(model: Model, batch: Batch, encoder: None = None) -> torch.Tensor:
    """As this package trains when targets are cached."""
    return flow_loss(model, batch, model.encode_condition(batch.input_ids))


def encoder_in_the_step(model: Model, batch: Batch, encoder: EvaClipVisionModel) -> torch.Tensor:
    """As this package trains when they are not."""
    return cached_targets(model, encoded(encoder, batch))


def cached_conditions(model: Model, batch: Batch, encoder: None = None) -> torch.Tensor:
    """As this package trains the diffusion transformer alone: the queries are frozen, conditions are cached."""
    return flow_loss(model, batch, batch.condition)


PATHS: dict[str, Callable[..., torch.Tensor]] = {
    "naive": naive,
    "naive, checkpointing": naive_with_checkpointing,
    "naive, no encoder": naive_without_encoder,
    "encoder in the step": encoder_in_the_step,
    "cached targets": cached_targets,
    "cached conditions": cached_conditions,
}
ENCODING = ("naive", "naive, checkpointing", "encoder in the step")
GPU_PATHS = ("encoder in the step", "cached targets", "cached conditions")


def make_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """The Trainer's AdamW over all that trains, at the reference's learning rate."""
    return torch.optim.AdamW(trained(model).values(), lr=1e-4, weight_decay=0.0, fused=True)


def training_step(
    path: str, model: Model, batch: Batch, encoder: EvaClipVisionModel | None, optimizer: torch.optim.Optimizer
) -> None:
    """A whole step: forward, backward, clip, AdamW. With a backbone in bf16, under autocast, as in the Trainer."""
    dtype = model.backbone.dtype
    with torch.autocast(batch.features.device.type, dtype, enabled=dtype != torch.float32):
        loss = PATHS[path](model, batch, encoder)
    loss.backward()
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    optimizer.zero_grad()


# Measuring


def compare_gradients(model: Model, batch: Batch, encoder: EvaClipVisionModel) -> dict[str, float]:
    """
    How far the gradients of `cached targets` are from those of `naive`, which are given the same targets.

    Returns:
        The largest difference as a share of the largest gradient: of the same tensor at worst, of all tensors, and
        of the queries; the number of tensors; and how many of them the first leaves out because their gradients are
        nothing but rounding (attention does not see the biases of cross-attention's keys).
    """
    batch = encoded(encoder, batch)
    gradients = []
    for path in ("naive", "cached targets"):
        PATHS[path](model, batch, encoder).backward()
        gradients.append({name: parameter.grad for name, parameter in trained(model).items()})
        model.zero_grad()
    largest = {name: float(gradient.abs().max()) for name, gradient in gradients[0].items()}
    apart = {name: float((gradients[0][name] - gradients[1][name]).abs().max()) for name in largest}
    rounding = [name for name in largest if largest[name] < ROUNDING * max(largest.values())]
    return {
        "of the tensor, at worst": max(apart[name] / largest[name] for name in largest if name not in rounding),
        "of all tensors": max(apart.values()) / max(largest.values()),
        "of the queries": apart["queries.weight"] / largest["queries.weight"],
        "tensors": len(largest),
        "tensors of rounding": len(rounding),
    }


def count_flops(path: str, size: Size) -> int:
    """FLOPs of matrix products and convolutions per image, forward and backward, counted without memory."""
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH):
        model, encoder, batch = make_model(size), make_encoder(size), make_batch(size, 1)
        with FlopCounterMode(display=False) as counter:
            PATHS[path](model, batch, encoder).backward()
    return counter.get_total_flops()


def timed(device: torch.device, function: Callable[..., Any], *arguments: Any) -> tuple[float, float]:
    """Seconds of a call, and the seconds that the threads of this process worked for it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start, worked = time.perf_counter(), time.process_time()
    function(*arguments)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - worked


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second of a plain matrix product, the best of three."""
    width = 8192 if device.type == "cuda" else 2048
    matrix = torch.randn(width, width, device=device).to(dtype)
    return 2 * width**3 / min(timed(device, torch.matmul, matrix, matrix)[0] for _ in range(3))


def time_in_turn(size: Size, paths: list[str], images: int, rounds: int) -> dict[str, Any]:
    """Seconds of every path and the rate of a matrix product, in turn and round after round, in this process."""
    torch.manual_seed(0)
    device = torch.device("cpu")
    model, encoder, batch = make_model(size), make_encoder(size), make_batch(size, images)
    results: dict[str, Any] = {"gradient_differences": compare_gradients(model, batch, encoder)}
    optimizer = make_optimizer(model)
    training_step("cached conditions", model, batch, None, optimizer)  # the optimizer allocates its states
    seconds: dict[str, list[float]] = {path: [] for path in paths}
    processor: dict[str, list[float]] = {path: [] for path in paths}
    rates = []
    for _ in tqdm(range(rounds), desc="Rounds"):
        rates.append(matmul_rate(device, torch.float32))
        for path in paths:
            wall, worked = timed(device, training_step, path, model, batch, encoder, optimizer)
            seconds[path].append(wall)
            processor[path].append(worked)
    return results | {"seconds": seconds, "processor_seconds": processor, "matmul_flops_per_second": rates}


def peak_memory(device: torch.device) -> int:
    """Bytes of this process at their most: resident ones, or those that tensors take on the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run_alone(path: str, size: Size, images: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """
    Steps of one path in this process, with nothing loaded that the path does not need.

    Returns:
        `seconds` of every step; the rate of a matrix product; bytes at the `peak`, and of these the bytes of weights
        and of optimizer states. On the CPU, what the process had before the model is taken off the peak.
    """
    before = psutil.Process().memory_info().rss if device.type == "cpu" else 0
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        model = make_model(size, dtype, with_backbone=path != "cached conditions")
        encoder = make_encoder(size, dtype) if path in ENCODING else None
        batch, optimizer = make_batch(size, images), make_optimizer(model)
        for warm_up in ("cached conditions", path) if device.type == "cuda" else ("cached conditions",):
            training_step(warm_up, model, batch, encoder, optimizer)
        seconds = [timed(device, training_step, path, model, batch, encoder, optimizer)[0] for _ in range(rounds)]
    parameters = [*model.parameters(), *(encoder.parameters() if encoder else ())]
    peak = peak_memory(device) - before
    states = [state for states in optimizer.state.values() for state in states.values()]
    return {
        "seconds": seconds,
        "peak": peak,
        "weights": sum(tensor.nbytes for tensor in parameters if tensor.device.type != "meta"),
        "states": sum(tensor.nbytes for tensor in states),
        "matmul_flops_per_second": matmul_rate(device, dtype),
    }


# The report


def ratio_text(slower: list[float], faster: list[float]) -> str:
    """Median of the rounds' ratios, with the smallest and the largest."""
    ratios = [a / b for a, b in zip(slower, faster, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, all but its first column aligned to the right."""
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report_times(results: dict[str, Any]) -> str:
    """Time and work of every path."""
    flops, images = results["flops_per_image"], results["settings"]["images in a timed step"]
    rate = median(results["matmul_flops_per_second"])
    rows = []
    for path, times in results["seconds"].items():
        work = images * flops[path] / median(times)
        rows.append(
            [
                path,
                f"{median(times):.3g} ({min(times):.3g} to {max(times):.3g})",
                f"{images / median(times):.3g}",
                f"{flops[path] / 1e9:.1f}",
                f"{work / 1e9:.0f}",
                f"{100 * work / rate:.0f} %",
            ]
        )
    header = ["time", "seconds a step, median", "images/s", "GFLOP an image", "GFLOP/s", "of a matrix product"]
    return f"{table(header, rows)}\n\nA plain matrix product runs at {rate / 1e9:.0f} GFLOP/s."


def report_memory(memory: dict[str, dict[str, int]]) -> str:
    """Memory of every path, in MiB."""
    rows = []
    for path, taken in memory.items():
        rest = taken["peak"] - taken["weights"] - taken["states"]
        sizes = (taken["weights"], taken["states"], rest, taken["peak"])
        rows.append([path, *(f"{size / 2**20:.0f}" for size in sizes)])
    return table(["peak memory, MiB", "weights", "AdamW", "gradients, activations", "all"], rows)


def report_floors(results: dict[str, Any]) -> str:
    """What the shipped paths must reach against the naive ones, for all paths that ran."""
    seconds, memory, flops = results["seconds"], results["memory_bytes"], results["flops_per_image"]
    processor = results["processor_seconds"]
    rows = [
        [
            f"time of {slower} / {faster}",
            ratio_text(seconds[slower], seconds[faster]),
            f"at least {floor:g}",
            ratio_text(processor[slower], processor[faster]),
            f"{flops[slower] / flops[faster]:.2f}",
        ]
        for slower, faster, floor in COMPARISONS
        if slower in seconds and faster in seconds
    ]
    if "naive" in memory and "cached targets" in memory:
        share = memory["cached targets"]["peak"] / memory["naive"]["peak"]
        rows.append(
            [
                "peak memory of cached targets / naive",
                f"{100 * share:.1f} %",
                f"at most {100 * MOST_MEMORY:.0f} %",
                "",
                "",
            ]
        )
    apart = results["gradient_differences"]
    rows.append(
        [
            "difference of gradients / the largest",
            f"{apart['of all tensors']:.1e}",
            f"at most {MOST_DIFFERENCE:.0e}",
            "",
            "",
        ]
    )
    return "\n\n".join(
        [
            table(["", "measured", "wanted", "processor time", "FLOPs"], rows),
            f"Gradients of {apart['tensors']} tensors, cached targets against naive: at most "
            f"{apart['of the tensor, at worst']:.1e} of the largest in the same tensor, {apart['of the queries']:.1e} "
            f"in the queries. {apart['tensors of rounding']} tensors have no gradient but rounding.",
        ]
    )


def report_full_size(flops: dict[str, int]) -> str:
    """FLOPs of the 8B."""
    rows = [[path, f"{value / 1e12:.2f}", f"{value / flops['cached targets']:.2f}"] for path, value in flops.items()]
    return table(["the 8B, counted, not run", "TFLOP an image", "of cached targets"], rows)


def parameters_text(size: Size) -> str:
    """Parameters of the parts, and their ratio."""
    with torch.device("meta"):
        model, encoder = make_model(size), make_encoder(size)
    backbone = count(model.get_decoder()) - count(model.get_input_embeddings())
    parts = (backbone, count(model.transformer), count(encoder))
    ratio = " : ".join(f"{part / parts[1]:.2f}" for part in parts)
    return (
        f"backbone without embeddings {parts[0]:,}, diffusion transformer {parts[1]:,}, target encoder {parts[2]:,} "
        f"({ratio}); embeddings {count(model.get_input_embeddings()):,}"
    )


def main() -> None:
    """Measure and report: on a CPU, time in turn and memory alone; on a GPU, every path alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="scaled", help="%(default)s; 4b and 8b are for a GPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="%(default)s; cuda runs in bf16")
    parser.add_argument("--paths", nargs="+", choices=PATHS, help="which paths (all; on a GPU, those of this package)")
    parser.add_argument("--images", type=int, help="images in a timed step (4; on a GPU, 16)")
    parser.add_argument("--memory-images", type=int, default=16, help="on a CPU, where memory is measured (16)")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of every path (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/training_step.json"), help="JSON report")
    parser.add_argument("--alone", choices=PATHS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that PyTorch sees. It sees none. Run without it, on the CPU.")
    torch.set_num_threads(arguments.threads)
    size = SIZES[arguments.size]
    images = arguments.images or (16 if on_gpu else 4)
    alone = (images, arguments.rounds) if on_gpu else (arguments.memory_images, 1)
    if arguments.alone:
        print(json.dumps(run_alone(arguments.alone, size, *alone, torch.device(arguments.device))))
        return

    paths = arguments.paths or list(GPU_PATHS if on_gpu else PATHS)
    results: dict[str, Any] = {
        "settings": {
            "size": arguments.size,
            "parameters": parameters_text(size),
            "tokens": f"{size.text_tokens} of text, {NUM_QUERIES} queries; 1,024 of the encoder",
            "images in a timed step": images,
            "images where memory is measured": alone[0],
            "rounds": arguments.rounds,
            "precision": "bf16 autocast" if on_gpu else "fp32",
            "device": torch.cuda.get_device_name() if on_gpu else f"{platform.machine()}, {arguments.threads} threads",
            "versions": f"torch {torch.__version__}, Python {platform.python_version()}",
        },
        "flops_per_image": {path: count_flops(path, size) for path in paths},
        "memory_bytes": {},
    }
    for path in paths:
        command = [sys.executable, __file__, *sys.argv[1:], "--alone", path]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results["memory_bytes"][path] = json.loads(output.splitlines()[-1])
    if on_gpu:
        runs = results["memory_bytes"]
        results["seconds"] = {path: run["seconds"] for path, run in runs.items()}
        results["matmul_flops_per_second"] = [run["matmul_flops_per_second"] for run in runs.values()]
    else:
        results |= time_in_turn(size, paths, images, arguments.rounds)
    parts = [report_times(results), report_memory(results["memory_bytes"])]
    if not on_gpu:
        parts.append(report_floors(results))
    if arguments.size == "scaled":
        results["flops_per_image_8b"] = {path: count_flops(path, SIZES["8b"]) for path in PATHS}
        parts.append(report_full_size(results["flops_per_image_8b"]))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    print(*(f"- {key}: {value}" for key, value in results["settings"].items()), "", sep="\n")
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
