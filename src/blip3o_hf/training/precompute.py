"""Target features and conditions of a recipe's data, computed once: `data.cache` then spares training the encoders."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import set_seed
from transformers.utils import logging

from ..checks import check_keys
from ..data.images import decoded
from ..data.records import BadItem, Record, targets
from ..files import check_can_write, written_whole
from ..hub.cards import write_card
from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..models.processing_blip3o import Blip3oProcessor, message_images
from .caching import conditions_fingerprint, decode, record_check, target_fingerprint
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
from .inputs import encoder_source
from .origin import origin_of_features
from .recipes import Recipe
from .stages.generation import GenerationStage

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
    inputs: list[Any] | torch.Tensor = field(default_factory=list)

    def add(self, address: int, content: int, given: Any) -> None:
        assert isinstance(self.inputs, list)  # only those of a whole batch are stacked
        self.addresses.append(address)
        self.contents.append(content)
        self.inputs.append(given)


class _Computer:
    """
    What computes the rows of a recipe's cache.

    Args:
        recipe: of the stage `generation`.
        kinds: what is asked for; by default targets, and conditions where the queries are frozen.
    """

    def __init__(self, recipe: Recipe, kinds: Sequence[str] | None):
        settings = {key: value for key, value in recipe.data.items() if key != "cache"}
        stage = replace(recipe, data=settings).open_stage()  # nothing here comes from the cache that the recipe names
        if type(stage) is not GenerationStage:
            raise ValueError(
                f"A cache is for the stage '{GenerationStage.name}'. {recipe.source or 'The recipe'} is of the stage "
                f"'{recipe.stage}'. Name a recipe of that stage."
            )
        self.recipe, self.stage, self.arguments = recipe, stage, stage.arguments
        self.task = stage.task()
        self.kinds = self._chosen(kinds)
        self.model: Blip3oForConditionalGeneration | None = None
        self.processor: Blip3oProcessor | None = None

    def _chosen(self, kinds: Sequence[str] | None) -> list[str]:
        is_frozen = self.task.has_frozen_conditions(self.arguments, has_adapters=self.stage.lora is not None)
        if kinds is None:
            kinds = KINDS if is_frozen else ("targets",)
        check_keys(kinds, KINDS, "the kinds of a cache")
        if "conditions" in kinds and not is_frozen:
            raise ValueError(
                f"Conditions can be computed once where the queries are frozen. {self.stage.recipe_name} trains "
                f"{', '.join(self.task.parts(self.arguments))}. Ask for targets alone, or set `model.train: "
                f"[transformer]`."
            )
        return [kind for kind in KINDS if kind in kinds]

    def load(self) -> None:
        """The encoder, and for conditions the model as training builds it."""
        device = self.arguments.device
        self.encoder = self.stage.encoder
        if "conditions" in self.kinds:
            model, self.processor = self.stage.build()
            model = self.task.setup(model, self.processor, self.encoder, self.arguments, self.stage.peft_config(model))
            assert isinstance(model, Blip3oForConditionalGeneration)  # with adapters, conditions are not cached
            self.model = model.eval().to(device)
        self.encoder.model.to(device)

    def fingerprint(self, kind: str) -> dict[str, Any]:
        """All that rows depend on, beside what they are computed from."""
        if kind == "conditions":
            assert self.model is not None  # `load` has built it
            return conditions_fingerprint(self.task, self.model)
        source = encoder_source(self.stage.folders.get("encoder"), self.stage.source)
        return target_fingerprint(source, self.stage.feature_size, self.arguments)

    @torch.no_grad()
    def compute(self, kind: str, inputs: list[Any]) -> torch.Tensor:
        """Rows, in the precision of training."""
        if kind == "targets":
            return self.encoder.features(torch.stack(inputs))
        assert self.model is not None  # `load` has built it for conditions
        precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.arguments.mixed_precision)
        batch = self.task.on_device(self.task.encode_prompts(*zip(*inputs, strict=True)), self.model)
        with torch.autocast(self.model.device.type, precision, enabled=precision is not None):
            return self.model.encode_condition(**batch)


class _Items(Dataset):
    """
    Everything that the cache is to hold: each item of the data with all of its captions, and validation's records.

    Item `i` is what the cache still lacks of it, by kind, and a reason where it cannot be used. Numbers past the last
    one are empty items, so that all processes take equally many steps.
    """

    def __init__(self, computer: _Computer, cache: FeatureCache):
        data, processor = computer.stage.data, computer.processor
        records = data.pictures(decode, processor)
        mixture = getattr(records, "sources", None)
        self.sources = [records] if mixture is None else [tolerant.source for tolerant in mixture]
        held_out = data.held_out_pictures(lambda identity, record: (identity, decoded(record)), processor)
        self.held_out = [] if held_out is None else held_out
        self.computer, self.cache, self.kinds = computer, cache, computer.kinds
        if processor is not None:
            self.check = record_check(processor, computer.arguments.max_length)

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
        if "conditions" in self.kinds:
            for record in variants:
                self.check.check_texts(record)
        targets(variants)
        record = decoded(variants[0])
        assert record.target is not None  # `targets` has found one
        for address in missing.get("targets", ()):
            (pixels,) = self.computer.encoder.pixel_values([record.target])
            wanted["targets"].add(address, content_hash("", [record.target]), pixels)
        for address, prompt in missing.get("conditions", {}).items():
            assert self.computer.processor is not None  # conditions are asked for
            said = self.computer.processor.render_prompt(prompt or "", len(record.images), record.history)
            content = content_hash(said, (*message_images(record.history), *record.images))
            wanted["conditions"].add(address, content, (prompt, record.images, record.history))
        return wanted


def _collate(items: list[tuple[dict[str, Wanted], str | None]]) -> tuple[dict[str, Wanted], list[str]]:
    """Items as one, the pixels stacked: few large tensors pass from worker to process better than many small ones."""
    together = {kind: Wanted() for kind in KINDS}
    for wanted, _ in items:
        for kind, added in wanted.items():
            for name in ("addresses", "contents", "inputs"):
                getattr(together[kind], name).extend(getattr(added, name))
    pixels = together["targets"].inputs
    if isinstance(pixels, list) and pixels:
        together["targets"].inputs = torch.stack(pixels)
    return together, [reason for _, reason in items if reason is not None]


def _claim(contents: list[int], known: set[int], state: PartialState) -> list[int]:
    """
    Indices in `contents` of what this process is to compute. All processes call it together: of what several of them
    have, the first computes it. What anyone computes is added to `known`.
    """
    first = {content: index for index, content in reversed(list(enumerate(contents))) if content not in known}
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
    computer = _Computer(recipe, kinds)
    kinds, arguments = computer.kinds, computer.arguments
    folder = folder or recipe.data.get("cache")
    if folder is None:
        name = computer.stage.recipe_name
        raise ValueError(f"A cache needs a folder. None was given, and {name} has no `data.cache`. Name one.")
    folder = check_can_write(folder, "The folder of a cache")
    state = PartialState()
    set_seed(arguments.seed)
    computer.load()
    _describe(computer, folder, dtype, state)

    cache = FeatureCache(folder)
    items = _Items(computer, cache)
    steps = -(-len(items) // (batch_size * state.num_processes))
    loader = DataLoader(
        items,
        batch_size=batch_size,
        sampler=range(state.process_index, steps * batch_size * state.num_processes, state.num_processes),
        num_workers=arguments.dataloader_num_workers,
        collate_fn=_collate,
    )
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
                values = computer.compute(kind, [wanted.inputs[index] for index in mine])
                writers[kind].add([wanted.contents[index] for index in mine], values)
            writers[kind].link(wanted.addresses, wanted.contents)
    for writer in writers.values():
        writer.flush()
    _write_indices(folder, kinds, state)
    if state.is_main_process:
        write_card(folder, origin_of_features(recipe, computer.stage.data))
    cache = FeatureCache(folder)
    return Summary(
        computed={kind: len(known[kind]) - before[kind] for kind in kinds},
        records={kind: len(cache.addresses(kind)) for kind in kinds},
        bad=gather_object(bad),
    )


def _describe(computer: _Computer, folder: Path, dtype: str, state: PartialState) -> None:
    """Check that the folder is new or of the same model; leave a manifest, and an index of what earlier runs wrote."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_bytes()) if path.is_file() else {}
    stage = computer.stage
    for kind in computer.kinds:
        fingerprint = computer.fingerprint(kind)
        entry = manifest.setdefault(kind, {"dtype": dtype, "fingerprint": fingerprint})
        recorded = {**entry["fingerprint"], "dtype": entry["dtype"]}
        if found := differences(recorded, {**fingerprint, "dtype": dtype}):
            raise ValueError(
                f"A cache holds the {kind} of one model. {folder} does not fit {stage.recipe_name}: {found}. Set that "
                f"back, or choose another folder."
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
    _write_indices(folder, computer.kinds, state)


def _write_indices(folder: Path, kinds: Sequence[str], state: PartialState) -> None:
    state.wait_for_everyone()
    if state.is_main_process:
        for kind in kinds:
            write_index(folder, kind)
    state.wait_for_everyone()
