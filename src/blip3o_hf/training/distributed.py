"""What this package must do itself under the engines that spread training over processes (DDP, DeepSpeed, FSDP2)."""

import contextlib
from collections.abc import Iterable

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers.integrations import HfDeepSpeedConfig, is_deepspeed_zero3_enabled, unset_hf_deepspeed_config
from transformers.integrations.deepspeed import deepspeed_config

from .arguments import Blip3oTrainingArguments


def join_processes(arguments: Blip3oTrainingArguments) -> None:
    """
    Open what the processes talk through, before a model is built.

    ZeRO-3 partitions weights while they are loaded. On a CPU accelerate opens a process group that DeepSpeed does not
    know of, and every process would take itself for the only one; where DeepSpeed knows it, nothing happens. The
    backend is that of the accelerator: NCCL on NVIDIA's, gloo on a CPU.
    """
    if arguments.world_size > 1 and is_deepspeed_zero3_enabled():
        import deepspeed

        deepspeed.init_distributed(auto_mpi_discovery=False)


def check_engine(arguments: Blip3oTrainingArguments, engine: DistributedType) -> None:
    """
    Raises:
        ValueError: when the engine in use is not the one asked for, or cannot do what was asked for.
    """
    asked = DistributedType.FSDP if arguments.fsdp else None
    asked = DistributedType.DEEPSPEED if arguments.deepspeed_plugin is not None else asked
    if asked is not None and engine != asked:
        raise ValueError(
            f"Training must run on the engine that was asked for, {asked.value}. accelerate chose {engine.value}: it "
            f"has no FSDP on a CPU, and no DeepSpeed without a launcher, or under ACCELERATE_USE_CPU or `accelerate "
            f"launch --cpu`. Start as recipes/launch/README.md says, or drop `deepspeed` and `fsdp`."
        )
    is_sharded = engine in (DistributedType.DEEPSPEED, DistributedType.FSDP)
    if is_sharded and arguments.muon_learning_rate is not None:
        raise ValueError(
            f"Muon works on whole matrices, and {engine.value} cuts them up. Got `muon_learning_rate` "
            f"{arguments.muon_learning_rate}. Leave it out to train everything with AdamW, or train without "
            f"{engine.value}."
        )
    if engine == DistributedType.DEEPSPEED and arguments.spike_factor is not None:
        raise ValueError(
            f"`spike_factor` needs the gradient norm before the update, and DeepSpeed updates by itself. Got "
            f"{arguments.spike_factor}. Leave it out: updates that are not finite are left out all the same."
        )


def spreads_weights(arguments: Blip3oTrainingArguments) -> bool:
    """Whether each process holds a part of the weights alone, as under ZeRO-3 and FSDP."""
    plugin = arguments.deepspeed_plugin
    return bool(arguments.fsdp) or (plugin is not None and plugin.zero_stage == 3)


@contextlib.contextmanager
def whole_weights(arguments: Blip3oTrainingArguments):
    """Within the block, `from_pretrained` loads whole weights, also under ZeRO-3."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    plugin, settings = arguments.deepspeed_plugin, deepspeed_config()
    assert plugin is not None  # ZeRO-3 is on
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        plugin.dschf = HfDeepSpeedConfig(settings)  # transformers holds a weak reference only


def match_partitioned(model: nn.Module, device: torch.device) -> None:
    """
    Bring the rest of a model to device and precision of what ZeRO-3 partitioned while it was loaded.

    DeepSpeed does so for models of which nothing is partitioned yet, and takes the others for wholly prepared.
    """
    dtypes = {parameter.dtype for parameter in model.parameters() if hasattr(parameter, "ds_tensor")}
    if not dtypes:
        return
    (dtype,) = dtypes  # `from_pretrained` loads all in one precision
    for parameter in model.parameters():
        if not hasattr(parameter, "ds_tensor"):
            parameter.data = parameter.data.to(device, dtype)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)


def local_parts(parameters: Iterable[nn.Parameter]) -> list[torch.Tensor]:
    """
    What this process holds of each parameter, in place: its partition under ZeRO-3 and FSDP2, all of it otherwise.
    """
    return [_local_part(parameter) for parameter in parameters]


def _local_part(parameter: nn.Parameter) -> torch.Tensor:
    values = parameter.data
    return values.to_local() if isinstance(values, DTensor) else getattr(parameter, "ds_tensor", parameter).data


def forget_gathered(model: nn.Module) -> None:
    """After `local_parts` were written to: what FSDP2 and ZeRO-3 had gathered of the weights before is dropped."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    partitioned = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_tensor")]
    if partitioned:
        partitioned[0].partition(partitioned)  # ty: ignore[missing-attribute]  # DeepSpeed adds it


@contextlib.contextmanager
def whole_model(model: nn.Module, accelerator: Accelerator):
    """Within the block, every process holds all of a model that FSDP2 cut up, whose parts can then be called alone."""
    pieces = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for piece in pieces:
        piece.set_reshard_after_forward(False, recurse=False)
        piece.unshard()
    try:
        yield
    finally:
        for piece in pieces:
            plugin = accelerator.state.fsdp_plugin
            assert plugin is not None  # it cut the model up
            piece.set_reshard_after_forward(plugin.reshard_after_forward, recurse=False)
            piece.reshard()


def trainable_summary(model: torch.nn.Module) -> str:
    """A line for each part: its parameters, and how many of them train."""
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        name = name.removeprefix("base_model.model.")  # PEFT's
        part = counts.setdefault(name.partition(".")[0], [0, 0])
        size = getattr(parameter, "ds_numel", parameter.numel())  # of a parameter that ZeRO-3 partitioned
        part[0] += size
        part[1] += size if parameter.requires_grad else 0
    lines = [f"{part}: {total:,} parameters, {trained:,} train" for part, (total, trained) in counts.items()]
    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    return "\n".join([*lines, f"all: {totals[0]:,} parameters, {totals[1]:,} train"])
