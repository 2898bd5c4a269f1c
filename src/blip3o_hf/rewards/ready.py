"""What the ready-made rewards share: a name for logs, the licence of their weights, and where these come from."""

from pathlib import Path
from typing import Any

import torch

from ..assets import resolve_model
from ..checkpoints.loading import load_complete
from ..hub.reach import check_reachable


class ReadyReward:
    """
    A reward with a name; its weights, if it has any, are loaded at its first call.

    Args:
        name: in logs and tables; `RewardManager` and TRL read it as `__name__`.
        licence: of the weights, in words.
    """

    def __init__(self, name: str, licence: str):
        self.name = self.__name__ = name
        self.licence = licence

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r})"


def licence_of(model: str, known: dict[str, str]) -> str:
    """The licence of weights, where it is known by their Hub id."""
    return known.get(model, f"not known here: see the card of {model}")


def find_weights(model: str) -> str:
    """
    What `from_pretrained` takes for a packaged model, a folder or a Hub id.

    Raises:
        OSError: when it is none of these, or the Hub cannot be reached.
    """
    source = resolve_model(model)
    if not Path(source).is_dir():
        check_reachable(source)
    return source


def find_device(device: torch.device | str | None) -> torch.device:
    """A device by its name; by default this process's accelerator, where there is one."""
    if device is None:
        device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    return torch.device(device)


def load_judge(kind: Any, source: str, dtype: torch.dtype | str, device: torch.device | str | None) -> Any:
    """
    A model that judges, complete, in evaluation mode and without gradients.

    Args:
        kind: its class, or an Auto class of transformers.
        source: what `find_weights` found.
        dtype: of its weights.
        device: as of `find_device`.
    """
    model, _ = load_complete(kind.from_pretrained, source, may_hold_more=True, dtype=dtype)
    return model.to(find_device(device)).eval().requires_grad_(False)


__all__ = ["ReadyReward", "find_device", "find_weights", "licence_of", "load_judge"]
