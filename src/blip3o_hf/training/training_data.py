"""What a stage learns from: the section `data` of a recipe as one object. Sources on disk and the Hub are one kind."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar

from PIL import Image
from torch.utils.data import Subset

from ..checks import check_keys, find_class
from ..data.mixture import MIXTURE_KEYS, MixtureDataset, StreamingMixture, open_mixture
from ..data.records import Record, targets
from ..hub.cards import is_hub_id
from ..hub.provenance import public_name
from ..models.processing_blip3o import Blip3oProcessor
from .caching import checked, decode
from .recipe_values import typed

Complete = Callable[[str, Record], Any]
"""What is given of a source's identity and a record, as in [`~data.mixture.open_mixture`]."""
DEFAULT = "shapes"
HELD_OUT = 64
"""So many records of `evaluation.sources` are evaluated, the first ones."""
KNOWN = {
    DEFAULT: "blip3o_hf.shapes.recipe_data:ShapesData",
    "table": "blip3o_hf.preference.recipe_data:TableData",
}


class TrainingData:
    """
    Base of what recipes learn from. In a recipe, name your own class as `data.dataset: module:Class`.

    Args:
        settings: the section `data`, without what the stage itself reads of it.
        held_out: sources of held-out data, from `evaluation.sources`.
    """

    benchmark: ClassVar[str | None] = None
    """The benchmark that belongs to this data, as `module:Class`."""
    language: tuple[str, ...] = ()
    prompt: str | None = None
    """Something that a model can draw which was trained on it."""
    types: ClassVar[Mapping[str, Any]] = {}
    """Types of its settings by their keys; a value of a key without one is taken as it is."""

    def __init__(self, settings: Mapping[str, Any], held_out: Sequence[Any] = ()):
        self.settings = dict(settings)
        self.held_out = list(held_out)
        self.max_length: int | None = None
        """Longest text that the model reads, in tokens, where the recipe says so."""

    @classmethod
    def check(cls, settings: Mapping[str, Any], use: str, where: str) -> None:
        """
        Args:
            settings: the section `data`.
            use: what the stage reads: `images`, `pictures` (prompts with images), `conversations`, `pairs` (the last
                two), `prompts`, or `preferences` (prompts with two images each).
            where: the recipe, in words.

        Raises:
            ValueError: on an unknown key.
        """

    def pictures(self, complete: Complete = decode, processor: Blip3oProcessor | None = None) -> Any:
        """Records with prompts and the images to draw."""
        raise NotImplementedError

    def conversations(self, processor: Blip3oProcessor) -> Any:
        """Records with turns."""
        raise NotImplementedError

    def held_out_pictures(self, complete: Complete = decode, processor: Blip3oProcessor | None = None) -> Any:
        """As `pictures`, to evaluate with; `None` where there are none."""
        return None

    def held_out_conversations(self, processor: Blip3oProcessor) -> Any:
        """As `conversations`, to evaluate with; `None` where there are none."""
        return None

    def prompts(self) -> Any:
        """Rows with a `prompt`, and what rewards read; of `preferences` also with `chosen` and `rejected`."""
        raise NotImplementedError

    def held_out_prompts(self) -> Any:
        """As `prompts`, to evaluate with; `None` where there are none."""
        return None

    def images(self, number: int) -> Iterator[Image.Image]:
        """The first images to learn from, for statistics; the same in every process."""
        raise NotImplementedError

    def texts(self) -> Iterator[str]:
        """Texts that a tokenizer is to learn from."""
        raise NotImplementedError

    def describe(self) -> str:
        """What the data are, in Markdown, for the card of what was trained on them."""
        return f"Records of `{type(self).__module__}:{type(self).__name__}`."

    def places(self) -> tuple[str, ...]:
        """Where they were read from, as a user wrote it."""
        return ()

    @property
    def hub_ids(self) -> tuple[str, ...]:
        """Of the places, those on the Hub."""
        return tuple(source for source in self.places() if is_hub_id(source))


class SourcesData(TrainingData):
    """The mixture of `data.sources`; of two mixtures, `data.pictures` and `data.conversations`, for joint training."""

    def __init__(self, settings, held_out=()):
        super().__init__(settings, held_out)
        self.pictures_settings = self.settings.get("pictures", self.settings)
        self.conversations_settings = self.settings.get("conversations", self.settings)

    @classmethod
    def check(cls, settings, use, where):
        if use in ("prompts", "preferences"):
            raise ValueError(
                f"Prompts and preferences are rows of a table. {where} has 'data.sources'. Write `data: {{dataset: "
                f"table, path: prompts.jsonl}}`."
            )
        if use != "pairs":
            check_keys(settings, MIXTURE_KEYS, f"section 'data' of {where}")
            return
        check_keys(settings, ("pictures", "conversations"), f"section 'data' of {where}")
        for name in ("pictures", "conversations"):
            if name not in settings:
                raise ValueError(
                    f"Joint training reads pictures and conversations. {where} has no 'data.{name}'. Add it, with "
                    f"`sources`."
                )
            keys = [key for key in MIXTURE_KEYS if key != "streaming"]
            check_keys(settings[name], keys, f"'data.{name}' of {where}")

    def pictures(self, complete=decode, processor=None):
        return open_mixture(self.pictures_settings, self._checked(complete, processor))

    def conversations(self, processor):
        return open_mixture(self.conversations_settings, self._checked(decode, processor))

    def _checked(self, complete: Complete, processor: Blip3oProcessor | None) -> Complete:
        """What a batch would fail on is a bad item with its address, unless a cache holds what the batch needs."""
        return checked(processor, self.max_length) if complete is decode and processor is not None else complete

    def held_out_pictures(self, complete=decode, processor=None):
        if not self.held_out:
            return None
        records = open_mixture({"sources": self.held_out}, self._checked(complete, processor))
        assert isinstance(records, MixtureDataset)  # these settings do not ask for a stream
        return Subset(records, range(min(len(records), HELD_OUT)))

    def held_out_conversations(self, processor):
        return self.held_out_pictures(processor=processor)

    def images(self, number):
        return (targets([record])[0] for record in islice(_once(self.pictures()), number))

    def texts(self):
        for record in islice(_once(self.pictures()), 2000):
            yield from (record.prompt, *(turn["content"] for turn in record.turns))

    def describe(self):
        lines = [f"- {place_in_words(source)}" for source in self.places()]
        return "\n".join(("The licences of these data were not looked up:", "", *lines))

    def places(self):
        return tuple(dict.fromkeys(source_paths(self.settings)))


def open_training_data(
    settings: Mapping[str, Any], use: str, where: str, held_out: Sequence[Any] = ()
) -> TrainingData:
    """
    The data of a recipe.

    Args:
        settings: its section `data`, without what the stage itself reads of it.
        use, where: as in [`TrainingData.check`].
        held_out: from `evaluation.sources`.

    Raises:
        ValueError: on an unknown key or class.
    """
    kind, own_settings = data_class(settings, where)
    kind.check(own_settings, use, where)
    return kind(own_settings, held_out)


def data_class(settings: Mapping[str, Any], where: str) -> tuple[type[Any], dict[str, Any]]:
    """
    The class of a recipe's data, which need not be a subclass of [`TrainingData`] but has its methods; and its
    settings.

    Args:
        settings, where: as in [`open_training_data`].

    Raises:
        ValueError: when there is no such class.
    """
    settings = dict(settings)
    if {"sources", "pictures", "conversations"} & settings.keys():
        return SourcesData, settings
    name = typed(settings.pop("dataset", None), str | None, "data.dataset") or DEFAULT
    return find_class(name, KNOWN, f"key 'data.dataset' of {where}"), settings


def place_in_words(source: str) -> str:
    """Where data or weights are from, for a card: a link to the Hub, or a folder's name without its path."""
    return (
        f"[{source}](https://huggingface.co/{source})" if is_hub_id(source) else f"the folder `{public_name(source)}`"
    )


def _once(records: MixtureDataset | StreamingMixture) -> Iterable[Any]:
    """Every record of a dataset in turn; of a stream those of all processes."""
    if isinstance(records, StreamingMixture):
        records.rank, records.world_size = 0, 1
        return iter(records)
    return (records[index] for index in range(len(records)))


def source_paths(data: Any) -> Iterator[str]:
    """Places of all sources in a section of a recipe, whatever they are nested in."""
    if isinstance(data, Mapping):
        path = data.get("path", ())
        yield from [path] if isinstance(path, str) else path
        for value in data.values():
            yield from source_paths(value)
    elif isinstance(data, list):
        for value in data:
            yield from source_paths(value)
