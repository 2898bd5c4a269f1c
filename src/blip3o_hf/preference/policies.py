"""The policies beside the one that learns: an older one, and the one to stay near."""

import contextlib
from collections.abc import Generator, Mapping

import torch
from peft import PeftModel
from torch import Tensor, nn

Weights = dict[str, Tensor]


class Policies:
    """
    Other weights for what trains of a model: all of its transformer, or adapters. They take the place of its own while
    another policy is asked, so that nothing is computed or kept twice that does not train.

    Args:
        model: what trains, without what an engine put around it; its weights at this moment are the start of all.
        has_old: whether there is an older policy.
        has_reference: whether there is one to stay near. Of adapters, it is the model without them.
    """

    def __init__(self, model: nn.Module, has_old: bool = False, has_reference: bool = False):
        self.model = model
        self.old: Weights | None = self.weights() if has_old else None
        self.has_reference = has_reference
        self._reference = self.weights() if has_reference and not isinstance(model, PeftModel) else None

    def parameters(self) -> dict[str, nn.Parameter]:
        """Those that train, by their names."""
        return {name: each for name, each in self.model.named_parameters() if each.requires_grad}

    def weights(self) -> Weights:
        """A copy of what trains, float32."""
        return {name: each.detach().float().clone() for name, each in self.parameters().items()}

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """
        Let the old policy keep a share of itself, and take the rest from the one that learns.

        Args:
            decay: that share, in [0, 1).
        """
        assert self.old is not None  # else there is nothing to follow with
        self._to_device()
        for name, parameter in self.parameters().items():
            self.old[name].lerp_(parameter.float(), 1 - decay)

    def load_old(self, weights: Mapping[str, Tensor]) -> None:
        """
        Raises:
            ValueError: when these are not the weights of what trains.
        """
        known = {name: tuple(each.shape) for name, each in self.parameters().items()}
        given = {name: tuple(each.shape) for name, each in weights.items()}
        if given != known:
            odd = sorted(name for name in known.keys() | given.keys() if known.get(name) != given.get(name))
            raise ValueError(
                f"An old policy must be of the weights that train. {odd[0]} is {given.get(odd[0])}, and "
                f"{known.get(odd[0])} in the model. Resume with the settings that it was saved with."
            )
        self.old = {name: each.float() for name, each in weights.items()}

    @contextlib.contextmanager
    def as_old(self) -> Generator[None]:
        """Within the block, the model is the older policy; or what learns, where there is no older one."""
        self._to_device()
        with self._with(self.old):
            yield

    @contextlib.contextmanager
    def as_reference(self) -> Generator[None]:
        """
        Within the block, the model is the reference.

        Raises:
            ValueError: when none was kept.
        """
        if not self.has_reference:
            raise ValueError("Only a policy that was kept can be asked. There is no reference. Set `beta` above 0.")
        self._to_device()
        without = self.model.disable_adapter() if isinstance(self.model, PeftModel) else self._with(self._reference)
        with without:
            yield

    @contextlib.contextmanager
    def _with(self, weights: Weights | None) -> Generator[None]:
        if weights is None:
            yield
            return
        parameters = self.parameters()
        own = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = weights[name].to(own[name].dtype)
            torch.clear_autocast_cache()  # which holds half-precision copies by parameter, whatever its weights are
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = own[name]
            torch.clear_autocast_cache()

    def _to_device(self) -> None:
        """The Trainer brings the model to its device after it was bound to a task."""
        device = next(self.model.parameters()).device
        for weights in (self.old, self._reference):
            if weights is not None:
                weights.update({name: each.to(device) for name, each in weights.items()})


__all__ = ["Policies"]
