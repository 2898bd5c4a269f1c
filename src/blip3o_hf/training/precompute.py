"""Target features and conditions of a recipe's data, computed once: `data.cache` then spares training the encoders."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import set_seed
from transformers.utils import logging

from ..data.images import decoded
from ..data.records import BadItem, Record, targets
from ..files import written_whole
from ..hub.cards import write_card
from ..models.processing_blip3o import message_images
from ..names import check_keys
from .feature_cache import (
    KINDS,
    MANIFEST,
    FeatureCache,
    ShardWriter,
    condition_address,
    content_hash,
    differences,
    target_address,
    write_index,
)
from .origin import origin_of_features
from .recipes import Recipe
from .stages import GenerationStage, build_stage

logger = logging.get_logger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Summary:
    """
    What a run of `precompute` did, over all processes.

    Args:
        computed: rows computed, by kind.
        records: records that have a row, by kind, those of earlier runs included.
        bad: addresses and reasons of items that cannot be used.
    """

    computed: dict[str, int]
    records: dict[str, int]
    bad: list[str] = field(default_factory=list)


@dataclass
class Wanted:
    """Addresses, the hash of each one's content, and what is computed from: pixels, or a prompt with its images."""

    addresses: list[int] = field(default_factory=list)
    contents: list[int] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)

    def add(self, address: int, content: int, given: Any) -> None:
        self.addresses.append(address)
        self.contents.append(content)
        self.inputs.append(given)


class _Items(Dataset):
    """
    Everything that the cache is to hold: each item of the data with all of its captions, and validation's records.

    Item `i` is what the cache still lacks of it, by kind, and a reason where it cannot be used. Numbers past the last
    one are empty items, so that all processes take equally many steps.
    """

    def __init__(self, stage: GenerationStage, cache: FeatureCache, kinds: Sequence[str]):
        records = stage.records()
        mixture = getattr(records, "sources", None)
        self.sources = [records] if mixture is None else [tolerant.source for tolerant in mixture]
        self.held_out = stage.held_out_records(lambda identity, record: (identity, decoded(record)))
        self.stage, self.cache, self.kinds = stage, cache, kinds

    def __len__(self) -> int:
        return sum(map(len, self.sources)) + len(self.held_out)

    def __getitem__(self, index: int) -> tuple[dict[str, Wanted], str | None]:
        for source in self.sources:
            if index < len(source):
                try:
                    return self._wanted(source.identity, source.variants(index)), None
                except BadItem as item:
                    return {}, str(item)
            index -= len(source)
        if index < len(self.held_out):
            identity, record = self.held_out[index]
            return self._wanted(identity, [record]), None
        return {}, None

    def _wanted(self, identity: str, variants: list[Record]) -> dict[str, Wanted]:
        addresses = {
            "targets": {target_address(identity, variants[0]): None},
            "conditions": {condition_address(identity, record): record.prompt for record in variants},
        }
        missing = {
            kind: {address: prompt for address, prompt in addresses[kind].items() if not self.cache.has(kind, address)}
            for kind in self.kinds
        }
        wanted = {kind: Wanted() for kind in self.kinds}
        if not any(missing.values()):
            return wanted
        targets(variants)
        record = decoded(variants[0])
        for address in missing.get("targets", ()):
            (pixels,) = self.stage.pixel_values([record.target])
            wanted["targets"].add(address, content_hash("", [record.target]), pixels)
        for address, prompt in missing.get("conditions", {}).items():
            said = self.stage.processor.render_prompt(prompt or "", len(record.images), record.history)
            content = content_hash(said, (*message_images(record.history), *record.images))
            wanted["conditions"].add(address, content, (prompt, record.images, record.history))
        return wanted


def _collate(items: list[tuple[dict[str, Wanted], str | None]]) -> tuple[dict[str, Wanted], list[str]]:
    """Items as one, the pixels stacked: few large tensors pass from worker to process better than many small ones."""
    together = {kind: Wanted() for kind in KINDS}
    for wanted, _ in items:
        for kind, own in wanted.items():
            for name in ("addresses", "contents", "inputs"):
                getattr(together[kind], name).extend(getattr(own, name))
    if together["targets"].inputs:
        together["targets"].inputs = torch.stack(together["targets"].inputs)
    return together, [reason for _, reason in items if reason is not None]


def _claim(contents: list[int], known: set[int], state: PartialState) -> list[int]:
    """
    Places in `contents` of what this process is to compute. All processes call it together: of what several of them
    have, the first computes it. What anyone computes is added to `known`.
    """
    first = {content: place for place, content in reversed(list(enumerate(contents))) if content not in known}
    mine = []
    for rank, theirs in enumerate(gather_object([list(first)])):
        mine += [first[content] for content in theirs if rank == state.process_index and content not in known]
        known.update(theirs)
    return sorted(mine)


def precompute(
    recipe: Recipe,
    folder: str | Path | None = None,
    kinds: Sequence[str] | None = None,
    dtype: str = "float32",
    batch_size: int = 32,
    shard_size: int = 1024,
) -> Summary:
    """
    Compute what the cache of a generation recipe lacks; call it again after an interruption.

    Started by several processes (`torchrun`, `accelerate launch`), these divide the items among themselves. The folder
    gets a card for the Hub; one that a person wrote stays.

    Args:
        recipe: of the stage `generation`.
        folder: of the cache. Default: the recipe's `data.cache`.
        kinds: `"targets"`, `"conditions"` or both. Default: targets, and conditions where the queries are frozen.
        dtype: `"float32"` or `"bfloat16"`, of the rows on disk.
        batch_size: items that a process reads and computes at once.
        shard_size: rows in a file.

    Raises:
        ValueError: for another stage, conditions of queries that train, or a folder that holds those of another model.
    """
    for name, value in (("batch_size", batch_size), ("shard_size", shard_size)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1. Got {value}. Leave it out for the default.")
    check_keys([dtype], DTYPES, "the types of a cache")
    stage = _stage(recipe)
    kinds = _chosen(stage, kinds)
    folder = folder or recipe.data.get("cache")
    if folder is None:
        raise ValueError(f"A cache needs a folder. None was given, and {stage.where} has no `data.cache`. Name one.")
    folder = Path(folder)
    device = stage.arguments.device  # joins the processes
    state = PartialState()
    set_seed(stage.arguments.seed)
    model = _load(stage, kinds, device)
    _describe(stage, model, folder, kinds, dtype, state)

    cache = FeatureCache(folder)
    items = _Items(stage, cache, kinds)
    steps = -(-len(items) // (batch_size * state.num_processes))
    loader = DataLoader(
        items,
        batch_size=batch_size,
        sampler=range(state.process_index, steps * batch_size * state.num_processes, state.num_processes),
        num_workers=stage.arguments.dataloader_num_workers,
        collate_fn=_collate,
    )
    compute = _computations(stage, model)
    known = {kind: cache.contents(kind) for kind in kinds}
    writers = {kind: ShardWriter(folder, kind, state.process_index, DTYPES[dtype], shard_size) for kind in kinds}
    before = {kind: len(known[kind]) for kind in kinds}
    bad: list[str] = []
    for batch, reasons in tqdm(loader, disable=not state.is_main_process, desc="precompute"):
        for reason in reasons:
            logger.warning(f"Bad item {reason}")
        bad += reasons
        for kind in kinds:
            wanted = batch[kind]
            mine = _claim(wanted.contents, known[kind], state)
            if mine:
                values = compute[kind]([wanted.inputs[place] for place in mine])
                writers[kind].add([wanted.contents[place] for place in mine], values)
            writers[kind].link(wanted.addresses, wanted.contents)
    for writer in writers.values():
        writer.flush()
    _write_indices(folder, kinds, state)
    if state.is_main_process:
        write_card(folder, origin_of_features(stage))
    cache = FeatureCache(folder)
    return Summary(
        computed={kind: len(known[kind]) - before[kind] for kind in kinds},
        records={kind: len(cache.addresses(kind)) for kind in kinds},
        bad=gather_object(bad),
    )


def _stage(recipe: Recipe) -> GenerationStage:
    if recipe.stage != GenerationStage.name:
        raise ValueError(
            f"A cache is for the stage '{GenerationStage.name}'. {recipe.source or 'The recipe'} is of the stage "
            f"'{recipe.stage}'. Name a recipe of that stage."
        )
    stage = build_stage(recipe)
    stage.cached_kinds = ()  # what is computed here does not come from the cache that the recipe names
    return stage


def _chosen(stage: GenerationStage, kinds: Sequence[str] | None) -> list[str]:
    if kinds is None:
        kinds = KINDS if stage.has_frozen_conditions else ("targets",)
    check_keys(kinds, KINDS, "the kinds of a cache")
    if "conditions" in kinds and not stage.has_frozen_conditions:
        raise ValueError(
            f"Conditions can be computed once where the queries are frozen. {stage.where} trains "
            f"{', '.join(stage.trained_parts)}. Ask for targets alone, or set `model.train: [transformer]`."
        )
    return [kind for kind in KINDS if kind in kinds]


def _load(stage: GenerationStage, kinds: Sequence[str], device: torch.device):
    """The encoder, and for conditions the model as training builds it."""
    model = None
    if "conditions" in kinds:
        model = stage.build().eval().to(device)
    else:
        stage.load_encoder()
    stage.encoder.to(device)
    return model


def _computations(stage: GenerationStage, model) -> dict[str, Callable[[list], torch.Tensor]]:
    """What computes rows from inputs, in the precision of training, by kind."""
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(stage.arguments.mixed_precision)

    def features(pixels: list[torch.Tensor]) -> torch.Tensor:
        return stage.features(torch.stack(pixels))

    def conditions(prompts: list[tuple[str | None, tuple, tuple]]) -> torch.Tensor:
        inputs = stage.encode_prompts(*zip(*prompts, strict=True))
        autocast = torch.autocast(model.device.type, precision, enabled=precision is not None)
        with torch.no_grad(), autocast:
            return model.encode_condition(**{name: tensor.to(model.device) for name, tensor in inputs.items()})

    return {"targets": features, "conditions": conditions}


def _describe(stage, model, folder: Path, kinds, dtype: str, state: PartialState) -> None:
    """Check that the folder is new or of the same model; leave a manifest, and an index of what earlier runs wrote."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text()) if path.is_file() else {}
    for kind in kinds:
        own = stage.target_fingerprint() if kind == "targets" else stage.condition_fingerprint(model)
        entry = manifest.setdefault(kind, {"dtype": dtype, "fingerprint": own})
        recorded = {**entry["fingerprint"], "dtype": entry["dtype"]}
        if found := differences(recorded, {**own, "dtype": dtype}):
            raise ValueError(
                f"A cache holds the {kind} of one model. {folder} does not fit {stage.where}: {found}. Set that back, "
                f"or choose another folder."
            )
        if kind == "targets" and stage.recipe.model.get("standardize_features") and "statistics" not in entry:
            entry["statistics"] = stage.feature_statistics
    state.wait_for_everyone()
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*.safetensors"):
            left.unlink()
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(manifest, indent=2) + "\n")
    _write_indices(folder, kinds, state)


def _write_indices(folder: Path, kinds: Sequence[str], state: PartialState) -> None:
    state.wait_for_everyone()
    if state.is_main_process:
        for kind in kinds:
            write_index(folder, kind)
    state.wait_for_everyone()
