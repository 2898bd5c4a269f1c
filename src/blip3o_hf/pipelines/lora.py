"""LoRA in the pipeline: load, weight, fuse and unload trained adapters, as the pipelines of diffusers do."""

import functools
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE, LoraBaseMixin
from transformers import PreTrainedModel

from ..checkpoints.lookup import HUB_ARGUMENTS
from ..checks import check_name, unknown_name
from ..models.adapters import (
    LORA_PARTS,
    QUERIES,
    Blip3oAdaptedQueries,
    adapted_layers,
    check_peft,
    read_lora,
    split_lora,
    write_lora,
)
from ..models.plain_weights import unwrapped

_COMPONENTS = (*LORA_PARTS, "queries")
_Method = TypeVar("_Method", bound=Callable[..., Any])


def _on_plain_parts(method: _Method) -> _Method:
    """
    While the method runs, the parts stand in the place of what `torch.compile` or data parallelism made of them: the
    libraries know parts by their classes, and layers by their names. Compiled parts then compile anew.
    """

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        with unwrapped(self.model):
            return method(self, *args, **kwargs)

    return call  # ty: ignore[invalid-explicit-return]  # it has the method's signature


class Blip3oLoraLoaderMixin(LoraBaseMixin):
    """
    Adapters on the transformer and the backbone inside `pipeline.model`, and the queries that were trained with them.

    `set_adapters`, `disable_lora`, `enable_lora`, `fuse_lora`, `unfuse_lora`, `delete_adapters`, `get_list_adapters`
    and `get_active_adapters` are those of diffusers; the queries follow every one of them.
    """

    _lora_loadable_modules = list(LORA_PARTS)

    @property
    def backbone(self) -> PreTrainedModel:
        """The autoregressive model inside the model."""
        return self.model.backbone

    @classmethod
    def lora_state_dict(
        cls,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | Mapping[str, torch.Tensor],
        weight_name: str | None = None,
        use_safetensors: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
        return_lora_metadata: bool = False,
        **hub_arguments,
    ):
        """
        The tensors of an adapter, and with `return_lora_metadata` their metadata; arguments are those of
        `load_lora_weights`.
        """
        if use_safetensors is False:
            raise ValueError(
                "LoRA weights are read from safetensors files alone. Got use_safetensors=False. Reading a pickle can "
                "run any program: save the adapter again as safetensors, where it was written."
            )
        for name in hub_arguments:
            if name not in HUB_ARGUMENTS:
                raise TypeError(unknown_name("argument", name, HUB_ARGUMENTS, "call of load_lora_weights"))
        if isinstance(pretrained_model_name_or_path_or_dict, Mapping):
            tensors = dict(pretrained_model_name_or_path_or_dict)
        else:
            tensors, metadata = read_lora(pretrained_model_name_or_path_or_dict, weight_name, **hub_arguments)
        return (tensors, metadata) if return_lora_metadata else tensors

    @_on_plain_parts
    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | Mapping[str, torch.Tensor],
        adapter_name: str | None = None,
        **kwargs,
    ) -> None:
        """
        Load an adapter and make it the active one. Fused adapters are taken out of the weights first; call
        `unload_lora_weights` before, to build on what was fused.

        Args:
            pretrained_model_name_or_path_or_dict: a file, a folder or a Hub id with what `save_lora`,
                `save_lora_weights` or PEFT's `save_pretrained` wrote, or the tensors themselves.
            adapter_name: by default `default_0`, `default_1`, ...
            kwargs: `weight_name`, the file's name; `metadata` of tensors that are passed themselves, without which
                alpha is the rank; arguments of `from_pretrained` that say where to look (`subfolder`, ...).

        Raises:
            ValueError: when the adapter was made for another model, holds anything but LoRA and queries, or its name
                is taken. The pipeline is then as it was.
            ImportError: without PEFT.
        """
        check_peft()
        source = pretrained_model_name_or_path_or_dict
        tensors, metadata = self.lora_state_dict(source, return_lora_metadata=True, **kwargs)
        label = "The dictionary" if isinstance(source, Mapping) else str(source)
        parts, queries = split_lora(tensors, metadata, self.model, label)
        adapter_name = self._new_adapter_name(adapter_name)
        self._unfuse_all()
        with self._without_offloading(), ExitStack() as undo:
            trainable = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
            undo.callback(self._activate, list(self.get_active_adapters()))
            undo.callback(self._delete_adapters, [adapter_name])
            if "transformer" in parts:
                part = parts["transformer"]
                self.transformer.load_lora_adapter(
                    dict(part.tensors), prefix=None, adapter_name=adapter_name, metadata=part.config.to_dict()
                )
            if "backbone" in parts:
                part = parts["backbone"]
                self.backbone.load_adapter(
                    adapter_state_dict=dict(part.tensors),
                    peft_config=part.config,  # ty: ignore[invalid-argument-type]  # a dictionary, or a config of PEFT
                    adapter_name=adapter_name,
                )
            if queries is not None:
                if not isinstance(self.model.queries, Blip3oAdaptedQueries):
                    self.model.queries = Blip3oAdaptedQueries(self.model.queries)
                self.model.queries.add(adapter_name, queries)
            self.set_adapters(adapter_name)
            # PEFT froze the model around its layers.
            for parameter, requires_grad in trainable:
                parameter.requires_grad_(requires_grad)
            undo.pop_all()

    def _new_adapter_name(self, name: str | None) -> str:
        """A name that no adapter has: the given one, or the first free number."""
        registered = {name for names in self.get_list_adapters().values() for name in names}
        foreign = {name for layer in adapted_layers(self.model) for name in layer.lora_A} - registered
        if foreign:
            raise ValueError(
                f"The pipeline can only manage adapters that were loaded into its parts. Its model carries "
                f"{', '.join(sorted(foreign))}, which PEFT added to the whole model. Merge it first: "
                f"pipe.model = peft_model.merge_and_unload()."
            )
        if name is None:
            return next(
                free for number in range(len(registered) + 1) if (free := f"default_{number}") not in registered
            )
        if name in registered:
            raise ValueError(
                f"Every adapter needs its own name. Got adapter_name={name!r}, which is already in use. Choose "
                f"another, or call delete_adapters({name!r}) first."
            )
        if not name or "." in name:
            raise ValueError(f"The name of an adapter must not be empty or hold a dot. Got {name!r}. Use letters.")
        return name

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike,
        transformer_lora_layers: Mapping[str, torch.Tensor] | None = None,
        backbone_lora_layers: Mapping[str, torch.Tensor] | None = None,
        queries: torch.Tensor | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable | None = None,
        safe_serialization: bool = True,
        transformer_lora_adapter_metadata: Mapping[str, Any] | None = None,
        backbone_lora_adapter_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Write LoRA layers as one file, as the training scripts of diffusers do. After PEFT's own training,
        [`~models.adapters.save_lora`] is shorter.

        Args:
            save_directory: where the file goes.
            transformer_lora_layers, backbone_lora_layers: state dicts from `get_peft_model_state_dict`.
            queries (`[num_queries, hidden_size]`): trained query tokens.
            weight_name: the file's name.
            transformer_lora_adapter_metadata, backbone_lora_adapter_metadata: `peft_config[name].to_dict()`, without
                which alpha is taken to be the rank.
            is_main_process, save_function, safe_serialization: as in diffusers; a pickle is not written.
        """
        if not safe_serialization or save_function is not None:
            raise ValueError(
                "LoRA weights are written as safetensors alone. Got safe_serialization=False or a `save_function`. "
                "Leave them out."
            )
        given = {"transformer": transformer_lora_layers, "backbone": backbone_lora_layers}
        configs = {"transformer": transformer_lora_adapter_metadata, "backbone": backbone_lora_adapter_metadata}
        tensors: dict[str, torch.Tensor] = {}
        metadata: dict[str, Any] = {}
        for part, layers in given.items():
            if layers:
                tensors |= {f"{part}.{name}": tensor.detach().contiguous() for name, tensor in layers.items()}
                metadata |= {
                    f"{part}.{key}": sorted(value) if isinstance(value, set) else value
                    for key, value in (configs[part] or {}).items()
                }
        if not tensors:
            raise ValueError(
                "A file of LoRA holds at least one part. Got neither `transformer_lora_layers` nor "
                "`backbone_lora_layers`. Pass what get_peft_model_state_dict returns."
            )
        if queries is not None:
            tensors[QUERIES] = queries.detach().contiguous()
        if is_main_process:
            write_lora(tensors, metadata, save_directory, weight_name or LORA_WEIGHT_NAME_SAFE)

    @_on_plain_parts
    def set_adapters(
        self,
        adapter_names: list[str] | str,
        adapter_weights: float | dict | list[float] | list[dict] | None = None,
    ) -> None:
        """
        Choose the active adapters, and how much each of them counts (1 by default). Fused adapters are taken out of
        the weights first.

        Args:
            adapter_names: one or several; an empty list for none.
            adapter_weights: one number for all adapters or one per adapter; instead of a number,
                `{"transformer": ..., "backbone": ..., "queries": ...}` gives one per part.

        Raises:
            ValueError: on a part or an adapter that there is not, or another number of weights than of adapters.
        """
        names = self._known_adapters(adapter_names)
        weights = adapter_weights if isinstance(adapter_weights, list) else [adapter_weights] * len(names)
        for weight in weights:
            for component in weight if isinstance(weight, dict) else ():
                if component not in _COMPONENTS:
                    raise ValueError(unknown_name("part", component, _COMPONENTS, "argument `adapter_weights`"))
        without_queries = [
            {key: value for key, value in weight.items() if key != "queries"} if isinstance(weight, dict) else weight
            for weight in weights
        ]
        known = {name for others in self.get_list_adapters().values() for name in others}
        if known.issuperset(names) and len(names) == len(weights):  # the library refuses anything else
            self._unfuse_all()
        if names:
            super().set_adapters(names, without_queries)
        else:
            self._activate([])
        queries = self._adapted_queries
        if queries is not None:
            for name, weight in zip(names, weights, strict=True):
                scale = weight.get("queries") if isinstance(weight, dict) else weight
                if name in queries.scales:
                    queries.scales[name] = 1.0 if scale is None else float(scale)
            queries.active = tuple(name for name in names if name in queries.scales)
        self.null_features = None

    @_on_plain_parts
    def disable_lora(self) -> None:
        """Draw without adapters until `enable_lora`; fused ones are taken out of the weights first."""
        self._unfuse_all()
        super().disable_lora()
        if self._adapted_queries is not None:
            self._adapted_queries.is_enabled = False
        self.null_features = None

    @_on_plain_parts
    def enable_lora(self) -> None:
        """Draw with the active adapters again."""
        super().enable_lora()
        if self._adapted_queries is not None:
            self._adapted_queries.is_enabled = True
        self.null_features = None

    @_on_plain_parts
    def fuse_lora(
        self,
        components: Sequence[str] = _COMPONENTS,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
        **kwargs,
    ) -> None:
        """
        Add the active adapters, or `adapter_names`, to the weights themselves: drawing is then as fast as without.

        Unloading after fusing leaves plain weights that `save_pretrained` can save. As in diffusers, `lora_scale`
        stays with the adapters after `unfuse_lora`, until the next `set_adapters`.

        Args:
            components: parts to fuse: `transformer`, `backbone`, `queries`.
            lora_scale: factor on the present scales of the adapters that are fused.
            safe_fusing: whether to refuse when a fused weight would not be finite.
            adapter_names: by default the active ones.

        Raises:
            ValueError: on a part or an adapter that there is not.
        """
        self._check_components(components)
        names = self.get_active_adapters() if adapter_names is None else self._known_adapters(adapter_names)
        with self._without_offloading():
            parts = [component for component in components if component != "queries"]
            if parts or not components:
                # By the library's own `lora_scale` active adapters would be scaled, and fused ones twice.
                modules = (getattr(self, part, None) for part in parts if part in LORA_PARTS)
                for layer in (layer for module in modules if module is not None for layer in adapted_layers(module)):
                    for name in set(names) & layer.scaling.keys() - set(layer.merged_adapters):
                        layer.scaling[name] *= lora_scale
                super().fuse_lora(parts, 1.0, safe_fusing, names, **kwargs)
            if self._adapted_queries is not None and "queries" in components:
                self._adapted_queries.fuse(lora_scale, names)
        self.null_features = None

    @_on_plain_parts
    def unfuse_lora(self, components: Sequence[str] = _COMPONENTS, **kwargs) -> None:
        """Subtract fused adapters again: weights differ from the original by rounding."""
        self._check_components(components)
        with self._without_offloading():
            parts = [component for component in components if component != "queries"]
            if parts or not components:
                super().unfuse_lora(parts, **kwargs)
            if self._adapted_queries is not None and "queries" in components:
                self._adapted_queries.unfuse()
        self.null_features = None

    @_on_plain_parts
    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """
        Forget adapters, their queries included; after the last one, layers are plain again. The part of them that was
        fused stays in the weights. Where no other adapter was active, the first of those left becomes so.

        Raises:
            ValueError: on an adapter that there is not.
        """
        self._delete_adapters(self._known_adapters(adapter_names))

    def _delete_adapters(self, names: list[str]) -> None:
        active = [name for name in self.get_active_adapters() if name not in names]
        super().delete_adapters(names)
        layers, queries = list(adapted_layers(self.model)), self._adapted_queries
        for layer in layers:
            layer.merged_adapters = [name for name in layer.merged_adapters if name not in names]
        self._merged_adapters = self._merged_adapters - set(names)
        if queries is not None:
            for name in names:
                queries.remove(name)
            if not queries.fused_scales and not self._merged_adapters:
                queries.unfuse()
        remaining = sorted({name for others in self.get_list_adapters().values() for name in others})
        if not remaining:
            self.unload_lora_weights()
        else:
            self._activate(active or remaining[:1])
        self.null_features = None

    @_on_plain_parts
    def get_active_adapters(self) -> list[str]:
        """Names of the adapters that `set_adapters` chose last."""
        return super().get_active_adapters()

    @_on_plain_parts
    def get_list_adapters(self) -> dict[str, list[str]]:
        """Names of all adapters that are loaded, by the parts that they adapt."""
        return super().get_list_adapters()

    def set_lora_device(self, adapter_names: list[str] | str, device: torch.device | str | int) -> None:
        """
        As in diffusers: move adapters, which cannot be active then, to another device.

        Raises:
            ValueError: on an adapter that there is not.
        """
        super().set_lora_device(self._known_adapters(adapter_names), device)

    def _known_adapters(self, names: Iterable[str] | str) -> list[str]:
        """One or several names as a list; a `ValueError` for the first that no loaded adapter has."""
        names = [names] if isinstance(names, str) else list(names)
        loaded = sorted({name for layer in adapted_layers(self.model) for name in getattr(layer, "lora_A", ())})
        for name in names:
            if not loaded:
                raise ValueError(
                    f"An adapter is loaded before it is named. Got {name!r}, and none is loaded. Call "
                    f"load_lora_weights(..., adapter_name={name!r}) first."
                )
            check_name("adapter", name, loaded)
        return names

    @staticmethod
    def _check_components(components: Sequence[str]) -> None:
        for component in components:
            check_name("part", component, _COMPONENTS)

    def _activate(self, names: list[str]) -> None:
        """Make these adapters the active ones of every layer and of the queries, at the scales they have."""
        for layer in adapted_layers(self.model):
            layer.set_adapter(names)
        if self._adapted_queries is not None:
            self._adapted_queries.active = tuple(name for name in names if name in self._adapted_queries.trained)

    def _unfuse_all(self) -> None:
        """
        Take fused adapters out of the weights, of every part: PEFT does this only for the parts that it changes, with
        the scales of that moment, and would leave the other parts and the queries fused.
        """
        queries = self._adapted_queries
        is_fused = queries is not None and queries.fused_scales is not None
        if is_fused or any(layer.merged for layer in adapted_layers(self.model)):
            self.unfuse_lora()

    @_on_plain_parts
    def unload_lora_weights(self) -> None:
        """Remove all adapters and their queries: what is left are the weights from before, or the fused ones."""
        with self._without_offloading():
            super().unload_lora_weights()
            if self._adapted_queries is not None:
                self.model.queries = self._adapted_queries.unload()
        self._merged_adapters = set()
        self.null_features = None

    @functools.wraps(DiffusionPipeline.save_pretrained, assigned=())
    def save_pretrained(self, *args, **kwargs) -> None:
        """As in diffusers; layers that carry an adapter cannot be saved as plain weights."""
        if list(adapted_layers(self.model)) or self._adapted_queries is not None:
            raise ValueError(
                "A pipeline is saved without adapters in its layers. This one has adapters. Call "
                "unload_lora_weights(), after fuse_lora() to keep what they do."
            )
        super().save_pretrained(*args, **kwargs)

    @contextmanager
    def _scaled_lora(self, scale: float) -> Generator[None]:
        """Multiply the scales of active adapters, of every part and of the queries, for as long as this lasts."""
        layers, queries = list(adapted_layers(self.model)), self._adapted_queries
        if scale == 1 or not (layers or queries):
            yield
            return
        scalings = [dict(layer.scaling) for layer in layers]
        query_scales = {} if queries is None else dict(queries.scales)
        # Null features drawn meanwhile are those of these scales, and of no use afterwards.
        null_features, self.null_features = self.null_features, None
        try:
            for layer in layers:
                for name in layer.scaling.keys() & set(layer.active_adapters):
                    layer.scaling[name] *= scale
            if queries is not None:
                for name in queries.active:
                    queries.scales[name] *= scale
            yield
        finally:
            for layer, scaling in zip(layers, scalings, strict=True):
                layer.scaling.update(scaling)
            if queries is not None:
                queries.scales.update(query_scales)
            self.null_features = null_features

    @property
    def _adapted_queries(self) -> Blip3oAdaptedQueries | None:
        return self.model.queries if isinstance(self.model.queries, Blip3oAdaptedQueries) else None

    @contextmanager
    def _without_offloading(self) -> Generator[None]:
        """Bring all weights back for as long as layers are changed; offloading goes on afterwards."""
        hooks = (getattr(module, "_diffusers_hook", None) for module in self.model.modules())
        if any(hook is not None and hook.get_hook("group_offloading") for hook in hooks):
            raise ValueError(
                "Adapters can only be loaded, fused or unloaded while all weights are in memory. This pipeline "
                "offloads groups of layers. Call enable_group_offload() afterwards."
            )
        hook = getattr(self.model, "_hf_hook", None)
        device = self._execution_device if hook is not None else None
        by_model, by_layer, _ = self._optionally_disable_offloading(self)
        try:
            yield
        finally:
            if by_model:
                self.enable_model_cpu_offload(device=device)
            elif by_layer:
                self.enable_sequential_cpu_offload(device=device)


__all__ = ["Blip3oLoraLoaderMixin"]
