"""From the published layout to ours: one folder that the libraries open in every way."""

import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from filelock import FileLock, Timeout
from tqdm.auto import tqdm
from transformers import GenerationConfig

from .. import __version__
from ..checkpoints.decoder_files import decoder_weights, has_decoder, local_decoder
from ..checkpoints.headers import NUM_BYTES, HeaderEntry, StoredTensor, read_header
from ..checkpoints.lookup import HubFiles, LocalFiles, checkpoint_files
from ..checkpoints.published_checkpoint import PublishedCheckpoint
from ..checkpoints.published_names import OUTPUT_LAYER, PUBLISHED_DECODER, QUERIES, TARGET_ENCODER, our_name
from ..checkpoints.settings import config_settings, read_settings
from ..checkpoints.tensor_checks import check_tensors
from ..checkpoints.weight_files import index_name
from ..files import written_whole
from ..hub.cards import CARD, Origin, is_hub_id, stated_license, write_card
from ..hub.provenance import code_version
from ..models.configuration_blip3o import Blip3oConfig
from ..models.configuration_eva_clip import EvaClipVisionConfig
from ..models.fitted_config import config_of
from ..models.image_processing_eva_clip import EvaClipImageProcessor
from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..models.modeling_eva_clip import EvaClipVisionModel, published_tower_config
from ..models.processing_blip3o import Blip3oProcessor, has_tokenizer
from ..pipelines.pipeline_blip3o import Blip3oPipeline
from ..pipelines.pipeline_blip3o_decoder import load_scheduler
from ..schedulers.scheduling_feature_flow import Blip3oFlowScheduler
from .shards import Shard, TensorCopy, index_of, is_written, plan_shards, write_shard

STATE = "conversion.json"
LOCK = ".lock"
_UNFINISHED = re.compile(r"\.\w+\.(json|safetensors)")  # names that a killed process leaves behind
_DECODER_MODELS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}


@dataclass
class ConversionReport:
    """
    Where every tensor of the source went.

    Args:
        source: folder or Hub id.
        target: the folder that was written.
        moved: number of tensors by (pattern of source names, where they went); layer numbers are written `{i}`.
        notes: what the source lacked.
    """

    source: str
    target: str
    moved: Counter = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        width = max(len(pattern) for pattern, _ in self.moved)
        lines = [f"{'tensors of ' + self.source:{width}}  number  now"]
        lines += [
            f"{pattern:{width}}  {number:6d}  {destination}"
            for (pattern, destination), number in sorted(self.moved.items())
        ]
        lines.append(f"{'all':{width}}  {self.moved.total():6d}")
        return "\n".join([*lines, *self.notes])

    def summary(self) -> str:
        """Numbers of tensors by the folder they went to."""
        numbers = Counter()
        for (_, destination), number in self.moved.items():
            numbers[destination if destination.startswith("left out") else destination.split()[0]] += number
        lines = (f"{number} tensors: {destination}" for destination, number in numbers.items())
        return "\n".join([*lines, *self.notes])


@dataclass
class _Part:
    """One model of the conversion: where its tensors are, and where they go."""

    folder: str
    files: LocalFiles | HubFiles
    stored: Mapping[str, StoredTensor]
    rename: Callable[[str], str | None]
    stem: str
    config: EvaClipVisionConfig | None = None

    def path(self, file: str) -> Path:
        """Where a file lies that holds some of its tensors."""
        path = self.files.path(file)
        assert path is not None, file
        return path

    def copies(self) -> list[TensorCopy]:
        """Its tensors, in the order of the source."""
        copies = []
        for name, tensor in self.stored.items():
            renamed = self.rename(name)
            if renamed is not None:
                shape = tensor.shape[1:] if name == QUERIES else tensor.shape
                num_bytes = NUM_BYTES[tensor.dtype] * math.prod(tensor.shape)
                copies.append(TensorCopy(renamed, shape, tensor.dtype, num_bytes, name, tensor.file))
        return copies


def convert_published(
    source: str | os.PathLike,
    target: str | os.PathLike,
    with_target_encoder: bool = False,
    target_encoder_heads: int | None = None,
    max_shard_size: int = 5 * 10**9,
) -> ConversionReport:
    """
    Write a published checkpoint in our layout: model, processor, schedulers, diffusion decoder, card.

    Values are copied as they are, 16 MiB at a time. Everything is written to `TARGET.partial` first, which becomes
    `target` when it is whole. When the work is interrupted, the same call goes on after the last finished file.

    Args:
        source: folder or Hub id of a published checkpoint.
        target: folder to write; it must not exist.
        with_target_encoder: also write the EVA-CLIP tower, to `target_encoder/`, for training and reconstruction.
        target_encoder_heads: its number of attention heads, needed for other towers than EVA-CLIP-E-14-plus.
        max_shard_size: largest file, in bytes.

    Returns:
        [`ConversionReport`].

    Raises:
        FileExistsError: when `target` exists.
        ValueError: when the source is no published checkpoint, or damaged; nothing is left behind then. When
            `TARGET.partial` belongs to another conversion, or another process works on it.
        OSError: when the disk is too small.
    """
    source, target = str(source), Path(target)
    if os.path.lexists(target):
        raise FileExistsError(f"The target must not exist yet. {target} does. Choose another, or remove it.")
    checkpoint = PublishedCheckpoint.find(source)
    if checkpoint is None:
        raise ValueError(
            f"The source must be a published BLIP3-o checkpoint: a folder or Hub id with a config.json of the "
            f"model_type blip3o_qwen or blip3o_qwen_inference. {source} is not one: {_what_it_is(source)}. Our own "
            f"layout needs no conversion."
        )
    report = ConversionReport(source, str(target))
    files = checkpoint_files(source)
    pipeline, parts = _parts(source, checkpoint, files, report)
    if with_target_encoder:
        parts.append(_target_encoder(source, checkpoint, files, target_encoder_heads))
    _account(checkpoint, parts, report)

    plans = {part.folder: plan_shards(part.copies(), part.stem, max_shard_size) for part in parts}
    work = target.with_name(f"{target.name}.partial")
    lock = _start(work, source, parts, plans, with_target_encoder)
    try:
        _write_weights(work, parts, plans)
        _write_settings(work, pipeline, parts, report)
    except ValueError:
        shutil.rmtree(work)
        raise
    finally:
        lock.release()
    (work / LOCK).unlink(missing_ok=True)
    work.rename(target)
    (target / STATE).unlink()
    return report


def _what_it_is(source: str) -> str:
    """Says what a source is if it is not a published checkpoint."""
    try:
        settings = config_settings(source)
    except OSError as error:
        return str(error).split("\n")[0].rstrip(".")
    return f"its model_type is {settings['model_type']!r}" if "model_type" in settings else "it has no such file"


def _parts(
    source: str, checkpoint: PublishedCheckpoint, files: LocalFiles | HubFiles, report: ConversionReport
) -> tuple[Blip3oPipeline, list[_Part]]:
    """The pipeline without its weights, and the models that have weights to copy."""
    config = config_of(checkpoint, Blip3oConfig)
    model = checkpoint.empty_model(Blip3oForConditionalGeneration, config)
    model.config.architectures = [type(model).__name__]
    model.name_or_path = source
    if files.path("generation_config.json"):
        model.generation_config = GenerationConfig.from_pretrained(source)

    def rename(name: str) -> str | None:
        is_tied_copy = name == OUTPUT_LAYER and config.tie_word_embeddings
        return None if is_tied_copy else our_name(name)

    parts = [_Part("model", files, checkpoint.stored, rename, "model")]
    components: dict[str, Any] = {"processor": None}
    if has_tokenizer(files):
        components["processor"] = Blip3oProcessor.from_pretrained(source)
    else:
        report.notes.append("no processor: the source holds no tokenizer")
    if not has_decoder(source, subfolder=PUBLISHED_DECODER):
        report.notes.append(f"no decoder: the source holds no {PUBLISHED_DECODER}/")
    else:
        folder = local_decoder(source, PUBLISHED_DECODER)
        components["decoder_scheduler"] = load_scheduler(folder)
        for name, model_class in _DECODER_MODELS.items():
            _, stored = decoder_weights(folder / name)
            with torch.device("meta"):
                components[name] = model_class.from_config(model_class.load_config(folder / name))
            expected = {key: tuple(value.shape) for key, value in components[name].state_dict().items()}
            check_tensors(stored, expected, folder / name)
            parts.append(_Part(name, LocalFiles(folder / name), stored, str, "diffusion_pytorch_model"))
    pipeline = Blip3oPipeline(model=model, scheduler=Blip3oFlowScheduler(), null_seed=None, **components)
    pipeline.register_to_config(_name_or_path=source)
    return pipeline, parts


def _target_encoder(
    source: str, checkpoint: PublishedCheckpoint, files: LocalFiles | HubFiles, heads: int | None
) -> _Part:
    """The EVA-CLIP tower, once its sizes and tensors agree."""
    tower = {name: tensor for name, tensor in checkpoint.stored.items() if name.startswith(TARGET_ENCODER)}
    if not tower:
        raise ValueError(
            f"The target encoder is written from the tensors {TARGET_ENCODER}*. {source} holds none. Leave it out."
        )
    config = published_tower_config(source, tower, {} if heads is None else {"num_attention_heads": heads})

    def rename(name: str) -> str:
        return name.removeprefix(TARGET_ENCODER)

    return _Part("target_encoder", files, tower, rename, "model", config)


def _account(checkpoint: PublishedCheckpoint, parts: list[_Part], report: ConversionReport) -> None:
    """Say of every tensor of the source where it goes."""

    def pattern(name: str) -> str:
        return re.sub(r"\.\d+\.", ".{i}.", name)

    encoder = next((part for part in parts if part.folder == "target_encoder"), None)
    model = parts[0]
    for name in checkpoint.stored:
        renamed, destination = model.rename(name), "left out"
        if renamed is not None:
            destination = f"model/ {pattern(renamed)}"
        elif encoder is not None and name in encoder.stored:
            destination = f"target_encoder/ {pattern(name.removeprefix(TARGET_ENCODER))}"
        elif name.startswith(TARGET_ENCODER):
            destination = "left out: target encoder"
        elif name == OUTPUT_LAYER:
            destination = "left out: the same as the input embeddings"
        report.moved[pattern(name), destination] += 1
    for part in parts:
        if part.folder in _DECODER_MODELS:
            report.moved[f"{PUBLISHED_DECODER}/{part.folder}/*", f"{part.folder}/ the same names"] += len(part.stored)


def _start(
    work: Path, source: str, parts: list[_Part], plans: dict[str, list[Shard]], with_target_encoder: bool
) -> FileLock:
    """Make the working folder, or find that of the same conversion, and lock it."""
    names = {part.folder: sorted({tensor.file for tensor in part.stored.values()}) for part in parts}
    state = {
        "blip3o_hf": __version__,
        "source": source if not Path(source).exists() else str(Path(source).resolve()),
        "files": {
            part.folder: {
                file: [(stat := part.path(file).stat()).st_size, stat.st_mtime_ns]
                for file in names[part.folder]
                if isinstance(part.files, LocalFiles)
            }
            for part in parts
        },
        "shards": {folder: [shard.file for shard in plan] for folder, plan in plans.items()},
        "with_target_encoder": with_target_encoder,
    }
    present = [path.name for path in work.iterdir()] if work.is_dir() else [work.name] * work.exists()
    if any(name != LOCK and not _UNFINISHED.fullmatch(name) for name in present):
        found = read_settings(work / STATE) if (work / STATE).is_file() else None
        if found != state:
            raise ValueError(
                f"An interrupted conversion goes on only with the same settings. {work} belongs to another "
                f"conversion: another source, "
                f"changed files, other options or another version. Remove it, or choose another target."
            )
    needed = sum(
        shard.num_bytes for folder, plan in plans.items() for shard in plan if not is_written(shard, work / folder)
    )
    free = shutil.disk_usage(work.absolute().parent).free if work.parent.exists() else None
    if free is not None and free < needed:
        raise OSError(
            f"The disk must have room for the weights. {work.absolute().parent} has {free / 1e9:.1f} GB left, and "
            f"{needed / 1e9:.1f} GB are to be written. Free some, or choose a target elsewhere."
        )
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"Only one process may write a target at a time. Another one is writing {work}. Wait for it, or choose "
            f"another target."
        ) from error
    for path in list(work.rglob(".*")):
        if _UNFINISHED.fullmatch(path.name):
            path.unlink()
    with written_whole(work / STATE) as temporary:
        temporary.write_text(json.dumps(state, indent=2) + "\n")
    return lock


def _write_weights(work: Path, parts: list[_Part], plans: dict[str, list[Shard]]) -> None:
    """Copy the tensors of every part; files that are there already are kept."""
    total = sum(shard.num_bytes for plan in plans.values() for shard in plan)
    with tqdm(total=total, unit="B", unit_scale=True, desc="converting") as progress:
        for part in parts:
            folder = work / part.folder
            folder.mkdir(exist_ok=True)
            headers: dict[str, tuple[Path, dict[str, HeaderEntry]]] = {}

            def locate(copy: TensorCopy, part=part, headers=headers) -> tuple[Path, int]:
                if copy.source_file not in headers:
                    path = part.path(copy.source_file)
                    headers[copy.source_file] = path, read_header(path)
                path, header = headers[copy.source_file]
                return path, header[copy.source_name].begin

            for shard in plans[part.folder]:
                progress.set_postfix_str(f"{part.folder}/{shard.file}")
                if is_written(shard, folder):
                    progress.update(shard.num_bytes)
                else:
                    write_shard(shard, folder, locate, progress.update)
            if len(plans[part.folder]) > 1:
                with written_whole(folder / index_name(part.stem)) as temporary:
                    temporary.write_text(json.dumps(index_of(plans[part.folder]), indent=2) + "\n")


def _write_settings(work: Path, pipeline: Blip3oPipeline, parts: list[_Part], report: ConversionReport) -> None:
    """Everything but the weights."""
    for name, component in pipeline.components.items():
        if component is pipeline.model:
            component.config.save_pretrained(work / name)
            component.generation_config.save_pretrained(work / name)
        elif name in _DECODER_MODELS and component is not None:
            component.save_config(work / name)
        elif component is not None:
            component.save_pretrained(work / name)
    for part in parts:
        if part.config is not None:
            part.config.architectures = [EvaClipVisionModel.__name__]
            part.config.save_pretrained(work / part.folder)
            side = part.config.image_size
            image_processor = EvaClipImageProcessor(
                size={"shortest_edge": side}, crop_size={"height": side, "width": side}
            )
            image_processor.save_pretrained(work / part.folder)
    pipeline.save_config(work)
    pipeline.write_root(work)
    write_card(work, _origin(report, parts[0].files.path(CARD)), name=Path(report.target).name)


def _origin(report: ConversionReport, card: Path | None) -> Origin:
    """What is known of where the weights come from, the licence that the source's card states included."""
    is_on_hub = is_hub_id(report.source)
    name = Path(report.source).name if not is_on_hub else f"[{report.source}](https://huggingface.co/{report.source})"
    source = name if is_on_hub else f"the folder `{name}`"
    return Origin(
        summary=f"Converted by `blip3o-hf convert` (blip3o_hf {code_version()}) from {source}. The weights are those "
        f"of the source, bit for bit, and their licence is the source's. It samples as the reference implementation "
        f"does.",
        training=f"Nothing was trained here. The card of the source says how it was trained.\n\n"
        f"```text\n{report.summary()}\n```",
        data="The data of the source; its card describes them.",
        made_from={"all": source},
        base_model=(report.source,) if is_on_hub else (),
        license={} if card is None else stated_license(card),
    )


__all__ = ["ConversionReport", "convert_published"]
