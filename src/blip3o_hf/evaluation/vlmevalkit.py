"""
Our models in VLMEvalKit. It has no plug-ins: its models stand in a dictionary, into which a call puts ours.

The toolkit is not on PyPI, and this was tried against a stand-in of its modules only.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ..checks import check_name
from ..data.images import as_input_image
from .chat_answers import ChatAnswerer


def register_vlmevalkit(name: str = "blip3o", pretrained: str = "blip3o-tiny", **settings: Any) -> None:
    """
    Make a model known to VLMEvalKit, before its `run.py` is started in the same process.

    Args:
        name: that VLMEvalKit will know it by.
        pretrained: packaged name, folder or Hub id of a BLIP3-o.
        settings: of [`~evaluation.chat_answers.ChatAnswerer.load`]: `dtype` and `device`.

    Raises:
        ImportError: when VLMEvalKit cannot be imported.

    Example:

    ```python
    >>> import runpy
    >>> from blip3o_hf.evaluation.vlmevalkit import register_vlmevalkit

    >>> register_vlmevalkit("blip3o", "BLIP3o/BLIP3o-Model-8B", device="cuda")  # doctest: +SKIP
    >>> runpy.run_path("run.py", run_name="__main__")  # --model blip3o --data MMMU_DEV_VAL  # doctest: +SKIP

    ```
    """
    try:
        from vlmeval.config import supported_VLM
        from vlmeval.vlm.base import BaseModel
    except ImportError as error:
        raise ImportError(
            f"This call needs VLMEvalKit. Importing it failed: {error}. Install it from its repository."
        ) from error

    class Blip3oVlm(BaseModel):
        INTERLEAVE = True  # images may stand between words

        def __init__(self, pretrained: str, **settings: Any):
            super().__init__()
            self.answerer = ChatAnswerer.load(pretrained, **settings)

        def generate_inner(self, message: Sequence[Mapping[str, str]], dataset: str | None = None) -> str:
            """The answer to one question; `message` is a list of `{"type": "image" or "text", "value": ...}`."""
            content = [_content(**part) for part in message]
            return self.answerer([[{"role": "user", "content": content}]])[0]

    supported_VLM[name] = partial(Blip3oVlm, pretrained, **settings)


def _content(type: str, value: str, **_: Any) -> dict[str, Any]:
    check_name("kind of content", type, ("image", "text"))
    return {"type": type, type: as_input_image(value) if type == "image" else value}
