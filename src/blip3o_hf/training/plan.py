"""What a recipe needs, and what of it is missing here, before anything is loaded."""

import json
import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from ..assets import resolve_model
from ..checkpoints.weight_files import weight_files
from ..data.paths import expand_paths
from ..files import check_can_write
from ..hub.cards import is_hub_id
from ..hub.reach import SECONDS
from ..models.configuration_blip3o import Blip3oConfig
from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..models.transformer_next_dit import Blip3oTransformer2DModel
from .callbacks import TimeCallback
from .chain import Summary
from .checkpoints import has_complete_checkpoint, last_complete_checkpoint
from .recipes import Recipe
from .tasks.generation import GenerationTask
from .training_data import source_paths

GIB = 2**30
BYTES_OF_TRAINED = 16
"""Of a parameter that trains: weight, gradient and AdamW's two moments, in fp32."""


@dataclass
class Plan:
    """
    What a run needs.

    Args:
        lines: what there is and what it takes, in words.
        missing: what this machine lacks, in words; with none the run can start.
    """

    lines: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def lack(self, subject: str, text: str) -> None:
        """Note something that is missing."""
        self.lines.append(f"{subject}: MISSING, {text}")
        self.missing.append(f"{subject}, {text}")

    def __str__(self) -> str:
        end = [f"missing: {text}" for text in self.missing] or ["nothing is missing"]
        return "\n".join([*self.lines, *end])


def plan(recipe: Recipe) -> Plan:
    """
    Look for weights, data, processes and memory of a recipe; no weights are loaded and nothing is written.

    Args:
        recipe: of any stage; of `generation` and `joint` also the memory of what trains is estimated.
    """
    found = Plan()
    try:
        recipe = recipe.checked()
    except ValueError as error:
        found.lack("recipe", str(error))
        return found  # nothing can be said of values that are none
    has_accelerator = torch.accelerator.is_available()
    on_cpu = recipe if has_accelerator else replace(recipe, training={**recipe.training, "use_cpu": True})
    arguments = on_cpu.training_arguments()  # transformers refuses those of a GPU where there is none
    sizes = [_weights(found, name, given) for name, given in recipe.inputs.items()]
    _data(found, recipe)
    try:
        check_can_write(recipe.output_dir, "it")
    except OSError as error:
        found.lack("output_dir", str(error))
    num_devices = 0 if arguments.use_cpu else torch.accelerator.device_count()
    if arguments.use_cpu and not recipe.training.get("use_cpu", False):
        found.lack("accelerator", "there is none here. training.use_cpu=true trains on the CPU, which takes long")
    _processes(found, arguments, num_devices)
    _memory(found, recipe, sum(sizes), num_devices)
    _time(found, recipe, arguments.max_steps)
    if not found.missing:
        try:
            recipe.open_stage()
        except (ValueError, OSError) as error:
            found.lack("recipe", str(error))
    return found


def _weights(found: Plan, name: str, given: str) -> int:
    """Note where an input is; returns its bytes, or 0 where they are not known."""
    subject = f"weights '{name}'"
    try:
        folder = resolve_model(given)
    except FileNotFoundError:
        found.lack(subject, f"there is no folder {given}. Run the stage that writes it first")
        return 0
    if os.path.isdir(folder):
        size = _bytes_in(Path(folder))
        found.lines.append(f"{subject}: {folder}, {size / GIB:.2f} GiB")
        return size
    cached = [try_to_load_from_cache(folder, file) for file in ("config.json", "model_index.json")]
    snapshots = [Path(file).parent for file in cached if isinstance(file, str)]
    if snapshots:
        size = _bytes_in(snapshots[0])
        found.lines.append(f"{subject}: {folder} of the Hub, loaded before, {size / GIB:.2f} GiB")
        return size
    try:
        files = HfApi().model_info(folder, files_metadata=True, timeout=SECONDS).siblings or []
    except (HfHubHTTPError, httpx2.TransportError, OfflineModeIsEnabled) as error:
        found.lack(subject, f"{folder} is not on this machine, and the Hub does not give it ({type(error).__name__})")
        return 0
    size = sum(file.size or 0 for file in files if file.rfilename.endswith(".safetensors"))
    free = shutil.disk_usage(Path.home()).free
    text = f"{folder} of the Hub, {size / GIB:.2f} GiB to be downloaded"
    if size > free:
        found.lack(subject, f"{text}, and {free / GIB:.0f} GiB of the disk are free")
    else:
        found.lines.append(f"{subject}: {text}")
    return size


def _bytes_in(folder: Path) -> int:
    folders = [folder, *(path for path in folder.iterdir() if path.is_dir())]
    return sum(file.stat().st_size for each in folders for file in weight_files(each))


def _data(found: Plan, recipe: Recipe) -> None:
    sources = list(source_paths(recipe.data))
    if not sources:
        found.lines.append(f"data: drawn while it trains ({recipe.data.get('dataset', 'shapes')})")
    for source in sources:
        try:
            files = expand_paths(os.path.expanduser(source))
        except FileNotFoundError:
            files = []
        if any(file.exists() for file in files):
            number = f"{len(files)} files" if len(files) > 1 else "a folder" if files[0].is_dir() else "a file"
            found.lines.append(f"data: {source}, {number}")
        elif is_hub_id(source):
            found.lines.append(f"data: {source}, no folder or file here: looked for on the Hub")
        else:
            found.lack("data", f"there is none at {source}")
    cache = recipe.data.get("cache")
    if cache is not None and not Path(cache, "manifest.json").is_file():
        found.lack("data.cache", f"{cache} is not there. Run blip3o-hf precompute {recipe.source or 'RECIPE'}")


def _processes(found: Plan, arguments: Any, num_devices: int) -> None:
    micro = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    here = f"{num_devices} accelerators" if num_devices else "a CPU"
    wanted = 1 if arguments.global_batch_size is None else max(1, arguments.global_batch_size // micro)
    total = arguments.global_batch_size or micro
    text = f"{wanted} for steps of {total} records; this machine has {here}"
    if wanted > max(1, num_devices):
        found.lack("processes", f"{text}. Start it on more (recipes/launch), or raise gradient_accumulation_steps")
    else:
        found.lines.append(f"processes: {text}")


def _memory(found: Plan, recipe: Recipe, loaded: int, num_devices: int) -> None:
    """A lower bound: weights as they are stored, and what optimization adds for those that train."""
    trained = _trained_parameters(recipe)
    if recipe.inputs and not loaded and trained is None:
        found.lines.append("memory: not known while the weights are not on this machine")
        return
    needed = loaded + BYTES_OF_TRAINED * (trained or 0)
    if num_devices:
        _, available = torch.accelerator.get_memory_info()
        memory_owner = "an accelerator"
    else:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        memory_owner = "this machine"
    words = "" if trained is None else f" ({trained:,} parameters train)"
    text = f"at least {needed / GIB:.1f} GiB{words}, without activations; {memory_owner} has {available / GIB:.1f} GiB"
    if needed > available:
        found.lack("memory", text)
    else:
        found.lines.append(f"memory: {text}")


def _trained_parameters(recipe: Recipe) -> int | None:
    """Of a BLIP3-o's parts that train; of a new one on a backbone, the transformer's alone. `None` of other stages."""
    if recipe.stage not in ("generation", "joint") or recipe.model.get("lora") is not None:
        return None
    default = (*GenerationTask.default_parts, *(("backbone",) if recipe.stage == "joint" else ()))
    parts = recipe.model.get("train") or default
    if "model" not in recipe.inputs:
        settings = recipe.model.get("transformer")
        if settings is None or "transformer" not in parts:
            return None
        with torch.device("meta"):
            return _number(Blip3oTransformer2DModel(**settings))
    try:
        config = Blip3oConfig.from_pretrained(resolve_model(recipe.inputs["model"]), local_files_only=True)
    except (OSError, ValueError):
        return None
    with torch.device("meta"):
        model = Blip3oForConditionalGeneration(config)
    modules = {"backbone": model.get_decoder(), "queries": model.queries}
    modules["transformer"] = model.transformer if config.uses_transformer else model.feature_head
    return sum(_number(modules[part]) for part in parts if part in modules)


def _number(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _time(found: Plan, recipe: Recipe, max_steps: int) -> None:
    """What is known of it: from a run of this recipe that was finished, or that left a checkpoint."""
    folder = Path(recipe.output_dir)
    summary = Summary.read(folder)
    if summary is not None:
        found.lack("output_dir", f"{folder} holds a finished run of {summary.steps} steps, {summary.times}")
        return
    checkpoints = folder / "checkpoints"
    if has_complete_checkpoint(checkpoints):
        checkpoint = Path(last_complete_checkpoint(checkpoints))
        step = int(checkpoint.name.rpartition("-")[2])
        if (checkpoint / TimeCallback.filename).is_file() and step and max_steps > step:
            spent = json.loads((checkpoint / TimeCallback.filename).read_bytes())["wall_seconds"]
            left = spent / step * (max_steps - step)
            found.lines.append(f"time: {step} steps took {spent:.0f} s here; about {left:.0f} s more with --resume")
            return
    found.lines.append(f"time: {max_steps} steps; how long one takes is known after the first ones")


__all__ = ["Plan", "plan"]
