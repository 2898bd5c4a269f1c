"""Cards from templates, for every program that writes weights or features, and later changes by people."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import CardData, DatasetCard, DatasetCardData, ModelCard, ModelCardData, RepoCard

from ..assets import packaged_model_path, packaged_models
from ..files import written_whole
from ..reading import MAX_CARD_BYTES, read_text
from .card_check import (
    CARD,
    card_file_problems,
    card_problems,
    front_matter,
    front_matter_problem,
    is_repository_name,
    listed,
)
from .contents import Contents, Features
from .provenance import now, versions
from .results import MEASURED, Evaluation, write_hub_entries
from .sections import code_blocks, sections

MARK = "<!-- Written by blip3o-hf, which may write it again. Without this line it never will. -->"
TEMPLATE = Path(__file__).with_name("model_card.md")
FEATURES_TEMPLATE = Path(__file__).with_name("features_card.md")
UNKNOWN_BASE = "owner/name"
TRAINED = "generated_from_trainer"
NO_RESULTS = (
    "No figure was entered. `blip3o-hf card write FOLDER --results results.json` enters what an evaluation measured."
)
LIMITS = (
    "Neither limits nor biases of these weights were measured. A model repeats the biases of its training data and of "
    "the models it starts from. No filter looks at prompts or pictures: if you show them to others, filter them "
    "yourself."
)
_ABOUT = {
    "pipeline": (
        "BLIP3-o ([arXiv 2505.09568](https://arxiv.org/abs/2505.09568)) as one repository for `diffusers` and "
        "`transformers`: an autoregressive model that reads images and text and answers in text, query tokens that "
        "ask it for a picture, a diffusion transformer that draws image features from what they find, and a decoder "
        "to pixels."
    ),
    "model": (
        "The model of a BLIP3-o ([arXiv 2505.09568](https://arxiv.org/abs/2505.09568)) without its decoder to pixels."
    ),
    "adapter": (
        "A LoRA adapter for BLIP3-o ([arXiv 2505.09568](https://arxiv.org/abs/2505.09568)); it does nothing without "
        "the model that it was trained on."
    ),
    "decoder": (
        "A diffusion decoder of BLIP3-o ([arXiv 2505.09568](https://arxiv.org/abs/2505.09568)), from image features "
        "to pixels."
    ),
    "part": "A part of a BLIP3-o ([arXiv 2505.09568](https://arxiv.org/abs/2505.09568)).",
}


@dataclass(frozen=True)
class Origin:
    """
    How weights came to be, as far as the program that writes them knows.

    Args:
        summary: one paragraph.
        training, data: Markdown; empty where nothing is known.
        made_from: what other weights went in, a place by part: Hub ids, or names of folders.
        base_model: Hub ids of what was trained further or adapted.
        relation: to `base_model`: `finetune`, `adapter`, `quantized` or `merge`; with one, a card without
            `base_model` does not pass the check.
        datasets: Hub ids.
        language: codes such as `en`.
        license: what the front matter says of it: `license`, and where that is `other`, its name and link.
        prompt: something that the model can draw.
        is_trained: whether the program that writes them has trained them.
    """

    summary: str = "Saved by `blip3o_hf`."
    training: str = ""
    data: str = ""
    made_from: Mapping[str, str] = field(default_factory=dict)
    base_model: tuple[str, ...] = ()
    relation: str | None = None
    datasets: tuple[str, ...] = ()
    language: tuple[str, ...] = ()
    license: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = "a photo of a cat"
    is_trained: bool = False

    @classmethod
    def of_pipeline(cls, name_or_path: str) -> "Origin":
        """What a pipeline knows of its weights: at most where it was loaded from."""
        if not is_hub_id(name_or_path):
            return cls()
        link = f"[{name_or_path}](https://huggingface.co/{name_or_path})"
        return cls(
            summary=f"Saved by `Blip3oPipeline.save_pretrained`, which had been loaded from {link}. Whether weights "
            f"were changed in between is not known.",
            made_from={"pipeline": link},
            base_model=(name_or_path,),
        )

    @classmethod
    def of_card(cls, path: str | Path) -> "Origin":
        """What a card says of it, for weights that were changed in form alone; nothing where there is no card."""
        if not Path(path).is_file():
            return cls()
        data = front_matter(path)
        texts = dict(sections(read_text(path, MAX_CARD_BYTES), 2))
        return cls(
            training=texts.get("Training", "").partition("\n")[2].strip(),
            data=texts.get("Data", "").partition("\n")[2].strip(),
            base_model=listed(data.get("base_model")),
            relation=data.get("base_model_relation"),
            datasets=listed(data.get("datasets")),
            language=listed(data.get("language")),
            license=stated_license(path),
            is_trained=TRAINED in listed(data.get("tags")),
        )


def write_card(
    folder: str | Path,
    origin: Origin | None = None,
    *,
    name: str | None = None,
    picture: str | None = None,
    replace: bool = False,
) -> Path:
    """
    Write the card of a folder with weights, or with precomputed features, as far as it is known what they are.

    A card that a person wrote, which is one without the mark of this program, is kept. One that this program wrote is
    written anew, since the weights are new; the licence that was stated in it stays.

    Args:
        folder: of a pipeline, a model, an adapter or a part of one, or of features.
        origin: by default nothing is known.
        name: of the repository; by default that of the folder.
        picture: a sheet of samples, its path in the folder.
        replace: also replace a card without the mark.

    Returns:
        `Path` of the card.

    Raises:
        FileNotFoundError: when the folder holds no config of a pipeline, a model or an adapter, and no features.
    """
    folder, origin = Path(folder), origin or Origin()
    path = folder / CARD
    stated: dict[str, Any] = {}
    if path.exists():
        if MARK not in read_text(path, MAX_CARD_BYTES, errors="replace") and not replace:
            return path
        stated = stated_license(path)
    if features := Features.of(folder):
        card = _features_card(features, origin, stated or origin.license, *_names(folder, name))
    else:
        card = _model_card(Contents.of(folder), origin, stated or origin.license, *_names(folder, name), picture)
    card.text = re.sub(r"\n{3,}", "\n\n", card.text)
    _save(card, path)
    return path


def _model_card(
    contents: Contents, origin: Origin, license: Mapping[str, Any], title: str, name_or_path: str, picture: str | None
) -> ModelCard:
    is_base_packaged = bool(origin.base_model) and origin.base_model[0] in packaged_models()
    data = ModelCardData(
        base_model=_one_or_all(origin.base_model),
        datasets=list(origin.datasets) or None,
        language=list(origin.language) or None,
        library_name=contents.library,
        pipeline_tag=contents.pipeline_tag,
        tags=[*contents.tags, TRAINED] if origin.is_trained else contents.tags,
        base_model_relation=origin.relation,
        **license,
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        mark=MARK,
        title=title,
        name_or_path=name_or_path,
        origin=origin,
        about=_ABOUT[contents.kind],
        picture=picture,
        kind=contents.kind,
        has_processor=contents.has_processor,
        has_decoder=contents.has_decoder,
        prompt=origin.prompt,
        base=origin.base_model[0] if origin.base_model else UNKNOWN_BASE,
        base_is_packaged=is_base_packaged,
        module=contents.module,
        class_name=contents.class_name,
        parts=contents.parts,
        stored_as=contents.stored_as,
        size=contents.size,
        limits=LIMITS,
        date=now(),
        versions=versions(),
        evaluations=(),
        no_results=NO_RESULTS,
        measured=MEASURED,
    )


def _features_card(
    features: list[Features], origin: Origin, license: Mapping[str, Any], title: str, name_or_path: str
) -> DatasetCard:
    data = DatasetCardData(
        language=list(origin.language) or None,
        source_datasets=list(origin.datasets) or None,
        tags=["blip3o", "precomputed-features"],
        viewer=False,  # it reads no safetensors
        **license,
    )
    return DatasetCard.from_template(
        data,
        template_path=str(FEATURES_TEMPLATE),
        mark=MARK,
        title=title,
        name_or_path=name_or_path,
        origin=origin,
        kinds=features,
        licence=_licence(data),
        citation=_block("citation"),
        date=now(),
        versions=versions(),
    )


def update_card(
    path: str | Path,
    *,
    name: str | None = None,
    evaluations: Sequence[Evaluation] = (),
    **fields: Any,
) -> list[Path]:
    """
    Change a card in place: fields of its front matter, and the results of benchmarks. Its other text stays; comments
    in the front matter are lost.

    Args:
        path: of a card.
        name: `owner/name` of the repository, for the title and for the code.
        evaluations: what was measured; a benchmark that is there already is replaced.
        fields: of the front matter, such as `license` or `base_model`; `None` leaves one as it is.

    Returns:
        Paths of the card and, where it is the `README.md` of a folder, of what was written to `.eval_results/`.

    Raises:
        ValueError: when the front matter does not parse.
    """
    path = Path(path)
    if problem := front_matter_problem(read_text(path, MAX_CARD_BYTES)):
        raise ValueError(f"A card is changed by its front matter. That of {path} cannot be read: {problem}")
    card = ModelCard.load(path)
    before = _licence(card.data)
    for key, value in fields.items():
        if value is not None:
            card.data[key] = _one_or_all(value) if key == "base_model" else value
    if card.data.get("base_model"):
        base = card.data.base_model
        _replace_in_code(card, UNKNOWN_BASE, base if isinstance(base, str) else base[0])
    for heading, section in sections(card.text, 2):
        if heading == "Licence":
            card.text = card.text.replace(section, section.replace(before, _licence(card.data)))
    if name is not None:
        _rename(card, path.parent, name)
    for evaluation in evaluations:
        _enter(card, evaluation)
    if evaluations and card.data.get("model_name") is None:
        card.data["model_name"] = _title(card) or path.stem
    _save(card, path)
    written = [path]
    if path.name == CARD:
        written += write_hub_entries(path.parent, card.data.get("eval_results", []))
    return written


def is_hub_id(name_or_path: str) -> bool:
    """Whether it is written like an id of the Hub, and no folder here has that name."""
    return is_repository_name(name_or_path) and "/" in name_or_path and not Path(name_or_path).exists()


def stated_license(path: str | Path) -> dict[str, Any]:
    """What a card says of the licence in its front matter: `license`, `license_name`, `license_link`."""
    return {key: value for key, value in front_matter(path).items() if key.startswith("license")}


def base_of(name_or_path: str) -> tuple[tuple[str, ...], bool]:
    """
    What a model in a folder or on the Hub was made from, for the card of what is made from that model.

    Returns:
        Hub ids (the names of packaged models among them), and whether it is known that there are no others: a model
        that this program trained from nothing has none.
    """
    packaged = next((name for name in packaged_models() if name_or_path in (name, packaged_model_path(name))), None)
    if packaged or is_hub_id(name_or_path):
        return (packaged or name_or_path,), True
    path = Path(name_or_path) / CARD
    if not path.is_file():
        return (), False
    data = front_matter(path)
    found = listed(data.get("base_model"))
    is_from_nothing = TRAINED in listed(data.get("tags")) and "base_model_relation" not in data
    return found, bool(found) or is_from_nothing


def _one_or_all(names: str | Sequence[str]) -> str | list[str] | None:
    """One name by itself, as the Hub's own cards have it."""
    if not names:
        return None
    if isinstance(names, str):
        return names
    return list(names) if len(names) > 1 else names[0]


def _names(folder: Path, name: str | None) -> tuple[str, str]:
    """Title of a card, and what `from_pretrained` takes in its code."""
    if name is not None:
        return name.rpartition("/")[2], name
    resolved = folder.resolve()
    if resolved.name == "pipeline":
        return resolved.parent.name, f"{resolved.parent.name}/pipeline"
    return resolved.name, resolved.name


def _licence(data: CardData) -> str:
    """What the text of a card says of the licence that its front matter states."""
    return _block("licence", **{key: data.get(key) for key in ("license", "license_name", "license_link")})


def _block(name: str, **variables: Any) -> str:
    """A block of the template by itself."""
    template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"))
    return "".join(template.blocks[name](template.new_context(variables)))


def _title(card: ModelCard) -> str:
    return next((heading for heading, _ in sections(card.text, 1) if heading), "")


def _rename(card: ModelCard, folder: Path, name: str) -> None:
    """Give the repository another name, in the title and in the code."""
    title, old_name = _names(folder, None)
    card.text = re.sub(rf"^# {re.escape(title)}$", f"# {_names(folder, name)[0]}", card.text, flags=re.MULTILINE)
    _replace_in_code(card, old_name, name)


def _replace_in_code(card: ModelCard, old_name: str, name: str) -> None:
    for block in code_blocks(card.text, "python"):
        card.text = card.text.replace(block, block.replace(f'"{old_name}"', f'"{name}"'))


def _enter(card: ModelCard, evaluation: Evaluation) -> None:
    """Put one benchmark into the front matter and the text of a card, in the place of an earlier run of it."""
    kept = [
        result
        for result in card.data.get("eval_results", [])
        if result.dataset_name != evaluation.benchmark or not (result.metric_name or "").endswith(MEASURED)
    ]
    card.data["eval_results"] = kept + evaluation.for_model_index()
    text = _block("results", evaluations=[evaluation], measured=MEASURED).strip("\n") + "\n\n"
    parts = sections(card.text, 2)
    position = next((index for index, (heading, _) in enumerate(parts) if heading == "Results"), None)
    if position is None:
        position = next((i for i, (heading, _) in enumerate(parts) if "limit" in heading.lower()), len(parts))
        parts.insert(position, ("Results", "## Results\n\n"))
    results = parts[position][1].replace(NO_RESULTS + "\n\n", "")
    same_benchmark = [section for heading, section in sections(results, 3) if heading == evaluation.benchmark]
    earlier = next((section for section in same_benchmark if MEASURED in section.lower()), None)
    results = results.rstrip("\n") + "\n\n" + text if earlier is None else results.replace(earlier, text)
    parts[position] = ("Results", results)
    card.text = "".join(part for _, part in parts)


def _save(card: RepoCard, path: Path) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(str(card).rstrip("\n") + "\n")


__all__ = [
    "CARD",
    "MARK",
    "Origin",
    "base_of",
    "card_file_problems",
    "card_problems",
    "is_hub_id",
    "stated_license",
    "update_card",
    "write_card",
]
