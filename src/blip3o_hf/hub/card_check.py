"""Finds what is missing or wrong in a card; each problem is one text that says how to correct it."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, parse_eval_result_entries
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.repocard_data import model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id

from ..reading import MAX_CARD_BYTES, read_text
from ..yaml_text import parse_yaml
from .contents import Features
from .results import EVAL_RESULTS, MEASURED, ORIGINS, REPORTED, hub_entries
from .sections import code_blocks, prose, sections

CARD = "README.md"
RELATIONS = ("finetune", "adapter", "quantized", "merge")
REQUIRED = {
    "license": "blip3o-hf card write FOLDER --license apache-2.0",
    "library_name": "library_name: blip3o_hf",
    "pipeline_tag": "pipeline_tag: text-to-image",
    "tags": "tags: [blip3o, text-to-image]",
}
REQUIRED_OF_FEATURES = {"license": REQUIRED["license"], "tags": "tags: [blip3o, precomputed-features]"}
MANIFEST = ("command", "settings", "versions", "date")
_BRACKETS = r"\[[^][]{0,500}\]\(([^)\s]{1,250})"  # a bound on each part, so that no text takes long
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}\b")


def card_problems(folder: str | Path) -> list[str]:
    """
    What keeps the card of a folder from being published.

    Args:
        folder: of a pipeline, a model, an adapter or of precomputed features, with a `README.md`.

    Returns:
        list of `str`: a full sentence or two for each problem; empty for a good card.

    Raises:
        NotADirectoryError: when there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"A card is checked in the folder that it describes. {folder} is no folder.")
    if not (folder / CARD).is_file():
        return [f"{folder} has no {CARD}. Write one: blip3o-hf card write {folder}."]
    problems = card_file_problems(folder / CARD)
    data = front_matter(folder / CARD)
    is_adapter = (folder / "adapter_config.json").is_file() or any(folder.glob("pytorch_lora_weights*.safetensors"))
    if is_adapter and not data.get("base_model") and not data.get("base_model_relation"):
        problems.append(
            "`base_model` is missing, and the folder holds an adapter. Name the model that it is for: blip3o-hf card "
            "write FOLDER --base-model OWNER/NAME --relation adapter."
        )
    problems += _feature_problems(folder)
    return problems + list(_hub_entry_problems(folder, _results(data)))


def card_file_problems(path: str | Path) -> list[str]:
    """
    As `card_problems`, for a card that lies apart from the weights.

    Args:
        path: of a Markdown file.
    """
    path = Path(path)
    content = read_text(path, MAX_CARD_BYTES, errors="replace")
    problems = []
    if token := _TOKEN.search(content):
        problems.append(
            f"{path.name} shows what looks like an access token ({token[0][:6]}...). Delete it, and revoke it on the "
            f"Hub: who has read the card can use it."
        )
    data, problem = _front_matter(content)
    if problem:
        return [*problems, problem]
    text = REGEX_YAML_BLOCK.sub("", content, count=1)
    is_of_features = path.name == CARD and bool(Features.of(path.parent))
    problems += _field_problems(data, REQUIRED_OF_FEATURES if is_of_features else REQUIRED)
    problems += _text_problems(text)
    problems += _file_problems(path.parent, data, text)
    problems += _result_problems(data, text)
    return problems


def front_matter(path: str | Path) -> dict[str, Any]:
    """The front matter of a card; empty where there is none, or where it is no YAML mapping."""
    return _front_matter(read_text(path, MAX_CARD_BYTES, errors="replace"))[0]


def front_matter_problem(content: str) -> str:
    """What is wrong with a card's front matter; empty for a good one."""
    return _front_matter(content)[1]


def _front_matter(content: str) -> tuple[dict[str, Any], str]:
    """The front matter, and what is wrong with it; one of both is empty."""
    block = REGEX_YAML_BLOCK.search(content)
    if block is None:
        return {}, "The card has no front matter. Begin it with a line `---`, YAML such as `license: ...`, and `---`."
    try:
        data = parse_yaml(block[2])
    except ValueError as error:
        return {}, f"The front matter cannot be read: {error}"
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 2})" if mark else ""
        return {}, f"The front matter is no YAML{line}: {getattr(error, 'problem', error)}. Correct that line."
    if not isinstance(data, dict):
        return {}, f"The front matter must be keys with values. It is a {type(data).__name__}. Write `license: ...`."
    return data, ""


def _field_problems(data: Mapping[str, Any], required: Mapping[str, str]) -> Iterator[str]:
    for key, example in required.items():
        if not data.get(key):
            yield f"`{key}` is missing from the front matter. State it: {example}."
    yield from _license_problems(data)
    tags = data.get("tags")
    if tags and not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
        yield f"`tags` must be a list of words. It is {tags!r}. Write `tags: [blip3o]`."
    for key in ("base_model", "datasets"):
        for name in listed(data.get(key)):
            if not is_repository_name(name):
                yield f"`{key}` must name repositories of the Hub. Got {name!r}. Write `owner/name`."
    for code in listed(data.get("language")):
        if not re.fullmatch(r"[a-z]{2,3}|code|multilingual", str(code)):
            yield f"`language` must be codes of two or three letters. Got {code!r}. Write `en` for English."
    relation = data.get("base_model_relation")
    if relation is not None and relation not in RELATIONS:
        yield f"`base_model_relation` must be one of {', '.join(RELATIONS)}. Got {relation!r}."
    if relation is not None and not data.get("base_model"):
        yield (
            f"`base_model` is missing, and `base_model_relation` says {relation!r}. Name what the weights were made "
            f"from: blip3o-hf card write FOLDER --base-model OWNER/NAME."
        )


def _license_problems(data: Mapping[str, Any]) -> Iterator[str]:
    for name in listed(data.get("license")):
        if name == "unknown":
            yield (
                "`license` is `unknown`. Nobody may use weights without a licence: state one, or ask whoever made "
                "what these weights were made from."
            )
        elif not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", str(name)):
            yield f"`license` must be an id of the Hub, in small letters. Got {name!r}. Example: apache-2.0."
        elif name == "other" and not (data.get("license_name") and data.get("license_link")):
            yield "`license: other` needs `license_name` and `license_link`. State both."


def _text_problems(text: str) -> Iterator[str]:
    if not any(heading for heading, _ in sections(text, 1)):
        yield "The card has no title. Write `# NAME` below the front matter."
    codes = code_blocks(text, "python")
    if not codes:
        yield "The card has no quickstart. Show how to use the weights, in a block that begins with ```python."
    for number, code in enumerate(codes, 1):
        try:
            ast.parse(code)
        except SyntaxError as error:
            yield f"Python block {number} of the card does not parse: {error.msg}, line {error.lineno}. Correct it."
        except (ValueError, RecursionError, MemoryError):  # zero bytes, or brackets in thousands
            yield f"Python block {number} of the card does not parse. Correct it."
    for word, what, name in (("limit", "what it cannot do", "Limits"), ("cit", "how it is to be cited", "Citation")):
        found = [section for heading, section in sections(text, 2) if word in heading.lower()]
        if not any(section.partition("\n")[2].strip() for section in found):
            yield f"The card does not say {what}. Add a section `## {name}`."


def _file_problems(folder: Path, data: Mapping[str, Any], text: str) -> Iterator[str]:
    """Pictures and links that lead to no file beside the card."""
    text = re.sub(r"`[^`\n]*`", "", prose(text))
    shown = re.findall(rf"!{_BRACKETS}", text) + re.findall(r"<img[^<>]{1,500}?src=\"([^\"<>]{1,250})\"", text)
    for sample in data.get("widget") or []:
        output = sample.get("output") if isinstance(sample, dict) else None
        shown += [output["url"]] if isinstance(output, dict) and "url" in output else []
    linked = [target for target in re.findall(rf"(?<!!){_BRACKETS}", text) if not target.startswith("#")]
    for verb, targets in (("shows the picture", shown), ("links to", linked)):
        for target in dict.fromkeys(targets):
            if not re.match(r"[a-z]+:", target) and not (folder / target.partition("#")[0]).exists():
                yield f"The card {verb} {target}, and there is no such file beside it. Add it, or take that out."


def _results(data: Mapping[str, Any]) -> list[EvalResult]:
    """The results of the front matter; none where it cannot be read."""
    try:
        return model_index_to_eval_results(data["model-index"])[1]
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


def _result_problems(data: Mapping[str, Any], text: str) -> Iterator[str]:
    if "model-index" in data and not _results(data):
        yield (
            "`model-index` cannot be read: it must be a list of models with `name` and `results`, each with `task`, "
            "`dataset` and `metrics`. `blip3o-hf card write FOLDER --results results.json` writes it."
        )
    tables = list(_tables(text))
    for heading, table in tables:
        marks = [origin for origin in ORIGINS if origin in table.lower()]
        if len(marks) != 1:
            yield (
                f"The results of '{heading}' must be marked. Write either '{MEASURED}' or '{REPORTED}' above the "
                f"table, and put results of both kinds under two headings."
            )
        elif marks == [MEASURED]:
            for key in MANIFEST:
                if not re.search(rf"^[-*] {key}: *\S", table, re.MULTILINE | re.IGNORECASE):
                    yield (
                        f"The results of '{heading}' are {MEASURED}, and no line `- {key}: ...` tells how. Add it, so "
                        f"that they can be measured again."
                    )
        elif not re.search(r"https?://|arXiv", table):
            yield f"The results of '{heading}' are {REPORTED}, and no source is given. Link it."
    for result in _results(data):
        yield from _entry_problems(result, tables)


def _tables(text: str) -> Iterator[tuple[str, str]]:
    """Parts of the results that hold figures: a table of them, or a block of printed text."""
    for heading, section in sections(text, 2):
        if not re.search(r"result|score", heading, re.IGNORECASE):
            continue
        for name, part in sections(section, 3):
            has_table = re.search(r"^\|.*\d.*\|\s*$", prose(part), re.MULTILINE)
            if has_table or any(re.search(r"\d", block) for block in code_blocks(part, "text")):
                yield name or heading, part


def _entry_problems(result: EvalResult, tables: list[tuple[str, str]]) -> Iterator[str]:
    """Whether a result of the front matter is marked, and is in the text with the same mark and value."""
    name, comma, origin = str(result.metric_name or result.metric_type).rpartition(", ")
    if not comma or origin not in ORIGINS:
        yield (
            f"Result '{result.metric_name or result.metric_type}' of {result.dataset_name} in `model-index` must be "
            f"marked. End its `name` with ', {MEASURED}' or ', {REPORTED}'."
        )
        return
    if origin == REPORTED and not result.source_url:
        yield (
            f"Result '{name}' of {result.dataset_name} in `model-index` is {REPORTED}, and has no source. Add "
            f"`source: {{url: ...}}`."
        )
    is_row = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")
    rows = [
        line for _, table in tables if origin in table.lower() for line in table.splitlines() if is_row.search(line)
    ]
    numbers = [number for row in rows for number in re.findall(r"-?\d+(?:\.\d+)?", row.replace(",", ""))]
    if not any(_is_rounded(number, result.metric_value) for number in numbers):
        yield (
            f"`model-index` says {result.metric_value} for '{name}' of {result.dataset_name}, and no row of results "
            f"that are {origin} says so. Make both the same."
        )


def _is_rounded(number: str, value: Any) -> bool:
    """Whether a printed number is a value, rounded to as many places as it shows."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return number == str(value)
    places = len(number.partition(".")[2])
    return abs(float(number) - value) <= 0.5 * 10**-places + 1e-9


def _feature_problems(folder: Path) -> Iterator[str]:
    """Whether the card of features says how many there are and what made them, as their manifest and index do."""
    lines = read_text(folder / CARD, MAX_CARD_BYTES, errors="replace").splitlines()
    for features in Features.of(folder):
        if features.row not in lines:
            yield (
                f"The card does not say how many {features.kind} there are. Put this line into a table, or run "
                f"`blip3o-hf precompute` again, which updates a card that it wrote: {features.row}."
            )
        missing = [line for line in features.fingerprint if line not in lines]
        if missing:
            yield (
                f"The card does not say what made the {features.kind}: it lacks {len(missing)} of "
                f"{len(features.fingerprint)} lines of their fingerprint. Put them in, or run `blip3o-hf precompute` "
                f"again, which updates a card that it wrote: {'; '.join(missing)}."
            )


def _hub_entry_problems(folder: Path, results: list[EvalResult]) -> Iterator[str]:
    """Whether `.eval_results/`, where there is one, says what `model-index` says."""
    if not (folder / EVAL_RESULTS).is_dir():
        return
    expected = {
        (entry.dataset_id, entry.task_id, entry.notes, entry.value)
        for entries in hub_entries(results).values()
        for entry in entries
    }
    found = set()
    for path in sorted((folder / EVAL_RESULTS).glob("*.yaml")):
        content = read_text(path, MAX_CARD_BYTES, errors="replace")
        if _TOKEN.search(content):
            yield f"{EVAL_RESULTS}/{path.name} shows what looks like an access token. Delete it, and revoke it."
        try:
            entries = parse_eval_result_entries(parse_yaml(content))
        except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
            yield (
                f"{EVAL_RESULTS}/{path.name} cannot be read ({type(error).__name__}: {error}). Write it again: "
                f"blip3o-hf card write FOLDER."
            )
            continue
        found |= {(entry.dataset_id, entry.task_id, entry.notes, entry.value) for entry in entries}
    for dataset, _, notes, value in sorted(found - expected, key=str):
        yield (
            f"{EVAL_RESULTS}/ says {value} for {dataset} ({notes}), and `model-index` does not. Write it again: "
            f"blip3o-hf card write FOLDER."
        )
    for dataset, _, notes, value in sorted(expected - found, key=str):
        yield (
            f"`model-index` says {value} for {dataset} ({notes}), and {EVAL_RESULTS}/ does not. Write it: blip3o-hf "
            f"card write FOLDER."
        )


def listed(value: Any) -> tuple:
    """One value or several of the front matter, or none, as a tuple."""
    return () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)


def is_repository_name(name: Any) -> bool:
    """Whether it is written like the name of a repository."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


__all__ = ["card_file_problems", "card_problems", "front_matter", "front_matter_problem"]
