"""LoRA for BLIP3-o: which layers it adapts, and the one file in which trained adapters are saved.

Training is PEFT's own: `get_peft_model(model, lora_config(model))`. A file of adapters names tensors as diffusers
does, `<part>.<layer>.lora_A.weight`, with rank and alpha of each part in its metadata; trained queries are whole, as
`queries.weight`.

A pipeline imports this module, and must draw without PEFT: only functions for adapters need PEFT.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, is_peft_available

from ..checkpoints.loading import named_errors
from ..checkpoints.lookup import checkpoint_files
from ..checkpoints.tensor_checks import listed
from ..checks import is_finite_number, unknown_name
from ..files import expanded, written_whole
from .configuration_blip3o import Blip3oConfig
from .modeling_blip3o import Blip3oForConditionalGeneration, Blip3oQueries

if is_peft_available():
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

LORA_PARTS = ("transformer", "backbone")
QUERIES = "queries.weight"
_TRANSFORMER_LAYERS = r"transformer\.layers\.\d+\.(attn[12]\.to_[qkv]|attn2\.to_out\.0|feed_forward\.linear_[123])"
_LORA_TENSOR = re.compile(rf"({'|'.join(LORA_PARTS)})\.(.+)\.lora_([AB])\.weight")
_MOST = 4  # names in an error
# Ways to initialise LoRA that leave the model's own weights as they are; the others of PEFT subtract from them.
_PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "orthogonal", "eva")


def check_peft() -> None:
    """Raise an `ImportError` where PEFT is not installed."""
    if not is_peft_available():
        raise ImportError("Adapters need PEFT. It is not installed. Install it: pip install peft.")


def adapted_layers(model: nn.Module) -> Iterator[Any]:
    """The layers of a model that PEFT put in the place of its own."""
    return (module for module in model.modules() if is_peft_available() and isinstance(module, BaseTunerLayer))


def lora_config(
    model: Blip3oForConditionalGeneration | Blip3oConfig,
    parts: Sequence[str] = ("transformer",),
    rank: int = 16,
    alpha: float | None = None,
    dropout: float = 0.0,
    train_queries: bool = True,
) -> LoraConfig:
    """
    PEFT's config of a LoRA on a BLIP3-o.

    Args:
        model: the model to adapt, or its config.
        parts: `"transformer"`: attention and feed-forward of the diffusion transformer's blocks; `"backbone"`: all
            linear layers of the backbone's text stack, never its vision tower or its output layer.
        rank: inner width of every adapter.
        alpha: adapters are scaled by `alpha / rank`; by default `rank`.
        dropout: on the adapters' inputs, in [0, 1).
        train_queries: whether the query tokens train, too, and as a whole.

    Raises:
        ValueError: on a part that is unknown, or that this model does not have.

    Example:

    ```python
    >>> from peft import get_peft_model
    >>> from blip3o_hf import Blip3oForConditionalGeneration, packaged_model_path
    >>> from blip3o_hf.models.adapters import lora_config

    >>> path = packaged_model_path("blip3o-tiny")
    >>> model = Blip3oForConditionalGeneration.from_pretrained(path, subfolder="model")
    >>> model = get_peft_model(model, lora_config(model, parts=("transformer", "backbone"), rank=4))

    ```
    """
    if isinstance(model, Blip3oConfig):
        with torch.device("meta"):
            model = Blip3oForConditionalGeneration(model)
    parts = (parts,) if isinstance(parts, str) else tuple(parts)
    if not parts:
        raise ValueError(
            f"A LoRA needs at least one part of the model. Got none. Choose from {', '.join(LORA_PARTS)}, or train "
            f"the queries alone without PEFT."
        )
    if rank < 1:
        raise ValueError(f"`rank` must be at least 1. Got {rank}. Between 4 and 64 is usual.")
    return LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,  # ty: ignore[invalid-argument-type]  # PEFT takes any number
        lora_dropout=dropout,
        target_modules="|".join(_target_modules(model, part) for part in parts),
        modules_to_save=["queries"] if train_queries else None,
    )


def _target_modules(model: Blip3oForConditionalGeneration, part: str) -> str:
    """Pattern of the full names of the layers of one part that LoRA adapts."""
    if part not in LORA_PARTS:
        raise ValueError(unknown_name("part", part, LORA_PARTS, "argument `parts` of lora_config"))
    if part == "transformer":
        if not model.config.uses_transformer:
            raise ValueError(
                "Only a model with a diffusion transformer can adapt it. The objective of this one is "
                f"{model.config.objective!r}, which has none. Use parts=('backbone',)."
            )
        return _TRANSFORMER_LAYERS
    decoder = model.get_decoder()
    stack = next(name for name, module in model.named_modules() if module is decoder)
    names = {
        r"\.".join(r"\d+" if step.isdigit() else re.escape(step) for step in f"{stack}.{name}".split("."))
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear)
    }
    if not names:
        raise ValueError(
            f"LoRA adapts linear layers. The text stack of this backbone ({type(decoder).__name__}) has none. Choose "
            f"`target_modules` of a LoraConfig yourself."
        )
    return "|".join(sorted(names))


# A trained adapter, apart from its model


@dataclass(frozen=True)
class LoraPart:
    """
    The LoRA of one part of the model.

    Args:
        tensors: `<layer>.lora_A.weight` and `<layer>.lora_B.weight` by the layer's name inside the part.
        config: ranks, alphas and layers.
    """

    tensors: dict[str, torch.Tensor]
    config: LoraConfig

    @property
    def metadata(self) -> dict[str, Any]:
        """The config as a file keeps it."""
        return {
            key: sorted(value) if isinstance(value, set) else value for key, value in self.config.to_dict().items()
        }


def export_lora(
    model: PeftModel | Blip3oForConditionalGeneration, adapter_name: str = "default"
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """
    A trained adapter as tensors and metadata of the file that [`save_lora`] writes.

    Args:
        model: from `get_peft_model`, or after its own `add_adapter`.
        adapter_name: which of the model's adapters.

    Raises:
        ValueError: when the model has no such adapter, or the adapter is more than LoRA and queries.
    """
    configs = getattr(model, "peft_config", {})
    if adapter_name not in configs:
        raise ValueError(
            f"Only an adapter that the model has can be exported. Got {adapter_name!r}; it has "
            f"{', '.join(configs) or 'none'}. Make one with get_peft_model(model, lora_config(model))."
        )
    tensors = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return from_peft(tensors, configs[adapter_name], f"Adapter {adapter_name!r}")


def save_lora(
    model: PeftModel | Blip3oForConditionalGeneration,
    folder: str | os.PathLike,
    adapter_name: str = "default",
    weight_name: str = LORA_WEIGHT_NAME_SAFE,
) -> Path:
    """
    Write a trained adapter as one file for `Blip3oPipeline.load_lora_weights`.

    Args:
        model, adapter_name: as in [`export_lora`].
        folder: where the file goes; created if it does not exist.
        weight_name: the file's name.

    Returns:
        `Path` of the file.
    """
    return write_lora(*export_lora(model, adapter_name), folder, weight_name)


def write_lora(
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, Any] | None,
    folder: str | os.PathLike,
    weight_name: str = LORA_WEIGHT_NAME_SAFE,
) -> Path:
    """Write tensors and metadata as [`export_lora`] returns them; the file appears whole or not at all."""
    if not weight_name.endswith(".safetensors"):
        raise ValueError(_no_pickle(weight_name))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    header = {"format": "pt"}
    if metadata:
        header[LORA_ADAPTER_METADATA_KEY] = json.dumps(metadata, indent=2, sort_keys=True)
    with written_whole(folder / weight_name) as path:
        save_file(dict(tensors), path, metadata=header)
    return folder / weight_name


def read_lora(
    source: str | os.PathLike, weight_name: str | None = None, **hub_arguments
) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """
    Tensors and metadata of an adapter, as [`export_lora`] returns them.

    Args:
        source: a file, a folder or a Hub id, with what [`save_lora`] or PEFT's `save_pretrained` wrote.
        weight_name: the file's name, by default that of diffusers, or else that of PEFT.
        hub_arguments: arguments of `from_pretrained` that say where to look (`subfolder`, `revision`, ...).

    Raises:
        FileNotFoundError: when it is a path, and nothing is there.
        ValueError: when there is no such file, it is no safetensors file, or holds more than LoRA and queries.
    """
    files = checkpoint_files(source, **hub_arguments)
    path = expanded(source)
    if weight_name is None and path.is_file():
        weight_name = path.name
    candidates = (LORA_WEIGHT_NAME_SAFE, ADAPTER_SAFE_WEIGHTS_NAME) if weight_name is None else (weight_name,)
    if not candidates[0].endswith(".safetensors"):
        raise ValueError(_no_pickle(candidates[0]))
    path = next((path for name in candidates if (path := files.path(name))), None)
    if path is None:
        pickles = [
            name for name in map(lambda name: name.replace(".safetensors", ".bin"), candidates) if files.path(name)
        ]
        raise ValueError(
            _no_pickle(pickles[0])
            if pickles
            else f"A LoRA is read from {' or '.join(candidates)}. {files} has no such file. Pass its name as "
            f"`weight_name`."
        )
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
    except SafetensorError as error:
        raise ValueError(
            f"A LoRA must be a readable safetensors file. {path} is damaged ({error}). Save or download it again."
        ) from error
    if path.name != ADAPTER_SAFE_WEIGHTS_NAME:
        metadata = header.get(LORA_ADAPTER_METADATA_KEY)
        return tensors, None if metadata is None else json.loads(metadata)
    config = files.path(ADAPTER_CONFIG_NAME)
    if config is None:
        raise ValueError(
            f"PEFT keeps rank and alpha in {ADAPTER_CONFIG_NAME}, beside {ADAPTER_SAFE_WEIGHTS_NAME}. {files} has "
            f"none. Copy it from where the adapter was saved."
        )
    with named_errors(config.parent):
        settings = LoraConfig.from_pretrained(str(config.parent))
    return from_peft(tensors, settings, str(path))


def _no_pickle(name: str) -> str:
    return (
        f"LoRA weights are safetensors files alone. Got {name}, and reading a pickle can run any program. Save it "
        f"again as safetensors, where it was written."
    )


def from_peft(
    tensors: Mapping[str, torch.Tensor], config: LoraConfig, source: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """
    Tensors under PEFT's names, and their config, to the names and metadata of [`export_lora`].

    Args:
        source: where they came from, for errors.

    Raises:
        ValueError: when there is more than LoRA and queries.
    """
    if config.peft_type != "LORA" or config.init_lora_weights not in _PLAIN_INITIALISATIONS:
        kind = config.init_lora_weights if config.peft_type == "LORA" else config.peft_type
        raise ValueError(
            f"Only a plain LoRA works on the model's own weights. {source} is {kind!r}, which changes them or needs "
            f"more. Merge it with PEFT's merge_and_unload instead, or convert it as PEFT's documentation says."
        )
    tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
    parts, queries = _split(tensors, _alphas(config), config.use_rslora, source)
    packed, metadata = {}, {}
    for name, part in parts.items():
        packed |= {f"{name}.{key}": tensor for key, tensor in part.tensors.items()}
        metadata |= {f"{name}.{key}": value for key, value in part.metadata.items()}
    if queries is not None:
        packed[QUERIES] = queries
    return packed, metadata


def split_lora(
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, Any] | None,
    model: Blip3oForConditionalGeneration,
    source: str = "The LoRA",
) -> tuple[dict[str, LoraPart], torch.Tensor | None]:
    """
    An adapter's LoRA by part, and its queries, checked against the model that they are for.

    Without metadata alpha is the rank, as in diffusers.

    Args:
        tensors, metadata: as [`export_lora`] returns them.
        source: where they came from, for errors.

    Raises:
        ValueError: when a tensor is unknown, missing, or of another model's shape.
    """
    alphas = {}
    for part in LORA_PARTS:
        saved = {
            key.removeprefix(f"{part}."): value
            for key, value in (metadata or {}).items()
            if key.startswith(f"{part}.")
        }
        if saved:
            settings = {key: saved[key] for key in ("r", "lora_alpha", "alpha_pattern", "use_rslora") if key in saved}
            alphas[part] = LoraConfig(**settings)
    rslora = {part: config.use_rslora for part, config in alphas.items()}

    def alpha(part: str, layer: str, rank: int) -> float:
        return _alphas(alphas[part])(part, layer, rank) if part in alphas else rank

    parts, queries = _split(tensors, alpha, rslora, source)
    findings = []
    for name, part in parts.items():
        module = getattr(model, name, None)
        layers = {} if module is None else dict(module.named_modules())
        for layer in sorted(part.config.target_modules or ()):
            findings += _misfits(f"{name}.{layer}", layers.get(layer), part.tensors, layer)
    expected_queries = (model.config.num_queries, model.config.hidden_size)
    if queries is not None and tuple(queries.shape) != expected_queries:
        findings.append(f"{QUERIES} is {list(queries.shape)}, not {list(expected_queries)}")
    if findings:
        raise ValueError(
            f"A LoRA must fit the model that it is loaded into. {source} does not in {len(findings)} places: "
            f"{listed(findings, _MOST)}. Load it into the model that it was trained on."
        )
    return parts, queries


def _alphas(config: LoraConfig) -> Callable[[str, str, int], float]:
    """
    Alpha of a layer by a config of PEFT, whose patterns are matched against the end of the layer's name.

    Raises:
        ValueError: on a pattern whose search could take for ever.
    """
    for pattern in config.alpha_pattern or {}:
        plain = re.sub(r"\\.|\[[^]]*\]", "", pattern)
        if len(pattern) > 500 or re.search(r"\)[*+{]", plain) or len(re.findall(r"[*+{]", plain)) > 3:
            raise ValueError(
                f"A pattern of a LoRA's `alpha_pattern` names layers, in at most 500 characters with three "
                f"repetitions, none of a group. Got {pattern!r:.80}. Write the names of the layers."
            )

    def alpha(part: str, layer: str, rank: int) -> float:
        names = (layer, f"{part}.{layer}")
        for pattern, value in (config.alpha_pattern or {}).items():
            if any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
                return value
        return config.lora_alpha

    return alpha


def _split(
    tensors: Mapping[str, torch.Tensor],
    alpha: Callable[[str, str, int], float],
    rslora: bool | Mapping[str, bool],
    source: str,
) -> tuple[dict[str, LoraPart], torch.Tensor | None]:
    """LoRA by part, its ranks read from the tensors, and queries; names are checked, shapes are not."""
    by_part: dict[str, dict[str, torch.Tensor]] = {}
    unknown = []
    for name, tensor in tensors.items():
        match = _LORA_TENSOR.fullmatch(name)
        if match and tensor.ndim == 2:
            by_part.setdefault(match[1], {})[name.removeprefix(f"{match[1]}.")] = tensor
        elif name != QUERIES:
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"A LoRA of BLIP3-o holds `lora_A` and `lora_B` of linear layers in {' and '.join(LORA_PARTS)}, and "
            f"{QUERIES}. {source} holds {len(unknown)} other tensors: {listed(sorted(unknown), _MOST)}. Export it "
            f"with `save_lora`, and anything else with the model."
        )
    if not by_part:
        raise ValueError(
            f"A LoRA must hold `lora_A` and `lora_B` of at least one layer. {source} holds none. Check that it is the "
            f"file that `save_lora` wrote."
        )
    parts = {}
    for part in sorted(by_part, key=LORA_PARTS.index):
        layers = {name.rsplit(".lora_", 1)[0] for name in by_part[part]}
        half = sorted(layer for layer in layers if len(_pair(by_part[part], layer)) < 2)
        if half:
            raise ValueError(
                f"A LoRA must hold `lora_A` and `lora_B` of every layer. {source} holds only one of them in "
                f"{len(half)}: {listed([f'{part}.{layer}' for layer in half], _MOST)}. Save or download it again."
            )
        ranks = {layer: by_part[part][f"{layer}.lora_A.weight"].shape[0] for layer in sorted(layers)}
        values = {layer: alpha(part, layer, rank) for layer, rank in ranks.items()}
        _check_numbers(part, tensors, values, source)
        common_rank = Counter(ranks.values()).most_common(1)[0][0]
        common_alpha = Counter(values.values()).most_common(1)[0][0]
        parts[part] = LoraPart(
            by_part[part],
            LoraConfig(
                r=common_rank,
                lora_alpha=common_alpha,  # ty: ignore[invalid-argument-type]  # PEFT takes any number
                rank_pattern={f"^{re.escape(k)}": rank for k, rank in ranks.items() if rank != common_rank},
                alpha_pattern={f"^{re.escape(k)}": value for k, value in values.items() if value != common_alpha},
                use_rslora=rslora if isinstance(rslora, bool) else rslora.get(part, False),
                target_modules=sorted(layers),
            ),
        )
    return parts, tensors.get(QUERIES)


def _check_numbers(part: str, tensors: Mapping[str, Any], alphas: Mapping[str, Any], source: str) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(
                f"A LoRA must hold finite numbers. {name} of {source} holds NaN or infinity. Download it again, or "
                f"take one from before the training diverged."
            )
    for layer, value in alphas.items():
        if not is_finite_number(value):
            raise ValueError(
                f"A LoRA's alpha must be a finite number. That of {part}.{layer} in {source} is {value!r:.40}. Save "
                f"it again."
            )


def _pair(tensors: Mapping[str, torch.Tensor], layer: str) -> list[torch.Tensor]:
    names = (f"{layer}.lora_{side}.weight" for side in "AB")
    return [tensors[name] for name in names if name in tensors]


def _misfits(name: str, layer: nn.Module | None, tensors: Mapping[str, torch.Tensor], key: str) -> list[str]:
    """What keeps a pair of tensors from adapting a layer, in words."""
    layer = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    if layer is None:
        return [f"there is no {name}"]
    if not isinstance(layer, nn.Linear):
        return [f"{name} is no linear layer"]
    down, up = _pair(tensors, key)
    rank = down.shape[0]
    expected = {"A": (rank, layer.in_features), "B": (layer.out_features, rank)}
    return [
        f"{name}.lora_{side}.weight is {list(tensor.shape)}, not {list(expected[side])}"
        for side, tensor in (("A", down), ("B", up))
        if tuple(tensor.shape) != expected[side]
    ]


# Queries of several adapters


class Blip3oAdaptedQueries(nn.Module):
    """
    Query tokens with those that came with adapters: `base + sum of scale * (trained - base)`, so that they scale and
    add up as LoRA does. Scale 0 is the base, and one adapter at scale 1 is exactly what was trained.

    It stands in the place of the model's queries while any are loaded; `base_layer` are the model's own.
    """

    def __init__(self, base_layer: Blip3oQueries):
        super().__init__()
        self.base_layer = base_layer
        self.trained = nn.ModuleDict()
        self.scales: dict[str, float] = {}
        self.active: tuple[str, ...] = ()
        self.is_enabled = True
        self.fused_scales: dict[str, float] | None = None

    def add(self, name: str, weight: torch.Tensor) -> None:
        """Take the queries of one more adapter, not active yet."""
        base = self.base_layer.weight
        queries = Blip3oQueries(*weight.shape).to(base.device, base.dtype).requires_grad_(False)
        queries.weight.copy_(weight)
        self.trained[name] = queries
        self.scales[name] = 1.0

    def remove(self, name: str) -> None:
        """Forget the queries of an adapter, if it has any; what of them is fused becomes part of the base."""
        if self.fused_scales is not None and name in self.fused_scales:
            self._keep({name: self.fused_scales.pop(name)})
        if name in self.trained:
            del self.trained[name], self.scales[name]
            self.active = tuple(other for other in self.active if other != name)

    def fuse(self, scale: float = 1.0, names: Sequence[str] | None = None) -> None:
        """Keep to the present scales, times `scale`, of `names` or the active adapters, and of those fused before."""
        self.fused_scales = self.fused_scales or {}
        for name in self.active if names is None else names:
            if name in self.trained and name not in self.fused_scales:
                self.scales[name] *= scale
                self.fused_scales[name] = self.scales[name]

    def unfuse(self) -> None:
        self.fused_scales = None

    def unload(self) -> Blip3oQueries:
        """The model's own queries, or what was fused into them."""
        if self.fused_scales:
            self._keep(self.fused_scales)
        return self.base_layer

    @torch.no_grad()
    def _keep(self, scales: Mapping[str, float]) -> None:
        """Make adapters at these scales part of the base; what each of the others adds to it stays."""
        base = self.base_layer.weight
        old, new = base.clone(), self._combined(1, scales)[0].clone()
        base.copy_(new)
        for name, queries in self.trained.items():
            if name not in scales:
                queries.get_parameter("weight").add_(new - old)

    def forward(self, batch_size: int) -> torch.Tensor:
        """Query embeddings `[batch_size, num_queries, hidden_size]`."""
        if not self.is_enabled:
            return self.base_layer(batch_size)
        scales = self.fused_scales
        if scales is None:
            scales = {name: self.scales[name] for name in self.active}
        return self._combined(batch_size, scales)

    def _combined(self, batch_size: int, scales: Mapping[str, float]) -> torch.Tensor:
        base = self.base_layer(batch_size)
        if list(scales.values()) == [1.0]:
            return self.trained[next(iter(scales))](batch_size)
        return base + sum(scale * (self.trained[name](batch_size) - base) for name, scale in scales.items() if scale)


__all__ = [
    "LORA_PARTS",
    "QUERIES",
    "Blip3oAdaptedQueries",
    "LoraPart",
    "adapted_layers",
    "check_peft",
    "export_lora",
    "from_peft",
    "lora_config",
    "read_lora",
    "save_lora",
    "split_lora",
    "write_lora",
]
