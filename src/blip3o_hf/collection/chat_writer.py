"""A chat model that writes prompts, each answer kept as it comes, so that a run goes on with the same prompts."""

import hashlib
import json
from collections.abc import Sequence

from .categories import Category
from .endpoint import Endpoint, Refused, unicode_text
from .folder import CollectionFolder
from .prompts import PER_ROUND

TRIES = 3
"""How often one answer is asked for that has another form than was asked for."""
REQUEST = """Write {number} prompts for a text-to-image model. Each asks for one picture of this kind: {about}.
Make them as different from each other as you can, in what is shown, in where it is, and in style; some short, some \
with many details. This is request {round}: do not begin with what comes to mind first."""
SCHEMA = {
    "type": "object",
    "properties": {"prompts": {"type": "array", "items": {"type": "string"}}},
    "required": ["prompts"],
    "additionalProperties": False,
}


class ChatWriter:
    """
    Writes prompts as a JSON list, by a schema.

    Args:
        endpoint: where the chat model is.
        model: its name there.
        folder: of the collection; it keeps the answers.
    """

    def __init__(self, endpoint: Endpoint, model: str, folder: CollectionFolder):
        self.endpoint = endpoint
        self.model = model
        self.folder = folder

    def write(self, category: Category, number: int, examples: Sequence[str]) -> list[str]:
        """
        As [`~collection.prompts.Writer`].

        Raises:
            OSError: when the model does not answer, refuses, or never answers in the form that was asked for.
        """
        text = REQUEST.format(number=PER_ROUND, about=category.about or category.name, round=number + 1)
        if examples:
            text += " The form, not the subjects, may be as in: " + "; ".join(examples) + "."
        asked = hashlib.sha256(f"{self.model}\n{text}".encode()).hexdigest()[:16]
        name = f"prompts-{category.name}-{number:05d}-{asked}"
        kept = self.folder.kept(name)
        if kept is None:
            self.folder.keep(name, {"prompts": self._ask(category, text)})
            kept = self.folder.kept(name)
        assert kept is not None
        return list(kept[0]["prompts"])

    def _ask(self, category: Category, text: str) -> list[str]:
        form = {"type": "json_schema", "json_schema": {"name": "prompts", "strict": True, "schema": SCHEMA}}
        said = ""
        for _ in range(TRIES):
            try:
                said, _ = self.endpoint.chat(self.model, [{"role": "user", "content": text}], response_format=form)
            except Refused as refused:
                raise OSError(
                    f"A chat model must write the prompts. It refuses category {category.name!r}: {refused}. Change "
                    f"its `about`."
                ) from refused
            prompts = prompts_in(said)
            if prompts:
                return prompts
        raise OSError(
            f"A chat model must answer with JSON that holds `prompts`, a list of texts. {self.model} answered "
            f"{said!r:.120}, {TRIES} times. Take one that knows JSON schemas."
        )


def prompts_in(text: str) -> list[str]:
    """
    The prompts of an answer; none where it has another form.

    Example:
        >>> prompts_in('{"prompts": ["a red apple", ""]}'), prompts_in("Sure!")
        (['a red apple'], [])
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return []
    prompts = content.get("prompts") if isinstance(content, dict) else None
    if not isinstance(prompts, list) or not all(isinstance(each, str) for each in prompts):
        return []
    return [unicode_text(each) for each in prompts if each.strip()]
