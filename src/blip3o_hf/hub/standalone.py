"""A repository that opens without this package: it carries the package's own source, written when it is exported.

transformers and diffusers run code that a repository carries where the user says `trust_remote_code=True`. Both copy
it from one flat folder, and find out what to copy by reading import statements line by line. transformers makes a copy
for every file that it is told to start from, with classes of its own; diffusers takes the files that the first one
names, and those that they name again and again, without an end where imports go in a circle. So there is one file to
start from, `ENTRY`, that names all others, and imports between these have a form in which neither library sees them.
"""

import ast
import hashlib
import json
import os
import re
from pathlib import Path

from .. import __version__

PACKAGE = Path(__file__).parents[1]
ENTRY = "blip3o_code"
PART = f"{ENTRY}_part"
CLASSES = {
    "Blip3oConfig": "models/configuration_blip3o.py",
    "Blip3oForConditionalGeneration": "models/modeling_blip3o.py",
    "Blip3oProcessor": "models/processing_blip3o.py",
    "Blip3oTransformer2DModel": "models/transformer_next_dit.py",
    "Blip3oPatchDecoder": "models/decoder_patch.py",
    "Blip3oFlowScheduler": "schedulers/scheduling_feature_flow.py",
    "Blip3oPipeline": "pipelines/pipeline_blip3o.py",
    "Blip3oDecoderPipeline": "pipelines/pipeline_blip3o_decoder.py",
    "Blip3oTextToImagePipeline": "pipelines/text_to_image.py",
}
"""What a repository's code offers, and the modules of this package from which it starts."""
PIPELINE = "Blip3oPipeline"
AUTO_MAP = {
    "AutoConfig": f"{ENTRY}.Blip3oConfig",
    "AutoModelForImageTextToText": f"{ENTRY}.Blip3oForConditionalGeneration",
    "AutoModelForMultimodalLM": f"{ENTRY}.Blip3oForConditionalGeneration",
    "AutoProcessor": f"{ENTRY}.Blip3oProcessor",
}
TASKS = {
    "text-to-image": {"impl": f"{ENTRY}.Blip3oTextToImagePipeline", "pt": ["AutoModelForImageTextToText"]},
}

_LIBRARIES = ("diffusers", "transformers")
_HEADER = """\
# Part of blip3o_hf {version}: {module}. Copyright 2026 The blip3o_hf authors.
# SPDX-License-Identifier: Apache-2.0
# Written by `blip3o-hf export --remote-code`. Changes belong in the package.
"""
_SPACE = f"""\
# The space in `from . name import` hides it from diffusers, which would go in circles; {ENTRY}.py names all files.
"""
_ENTRY_TEXT = '''\
"""All code that this repository carries. It is for those who have transformers and diffusers and not blip3o_hf.

transformers and diffusers start from this file, and copy the files that it names before they run it.
"""

import sys

from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
from transformers import PreTrainedModel, ProcessorMixin

# diffusers runs the code of all repositories in one place: what one with other code left there is forgotten.
_former, DIGEST = globals().get("DIGEST"), "{digest}"
if _former not in (None, DIGEST):
    for _name in list(sys.modules):
        if _name != __name__ and _name.rpartition(".")[0] == __package__ and "blip3o" in _name:
            del sys.modules[_name]

{imports}

__all__ = [
{exported}
]

for _name in __all__:
    # Libraries find these classes here, and copy what this file names when they save one.
    globals()[_name].__module__ = __name__

Blip3oConfig.ignored_entries = ()
Blip3oForConditionalGeneration.image_generator = staticmethod(generate_images)
Blip3oPipeline.library = __name__
_bases = (ModelMixin, SchedulerMixin, DiffusionPipeline, PreTrainedModel, ProcessorMixin)
LOADABLE_CLASSES[__name__] = {{base.__name__: ["save_pretrained", "from_pretrained"] for base in _bases}}
'''
_PART_TEXT = f'''\
"""Where diffusers finds the class of this part: in the code at the root, which it has run before."""

from . {ENTRY} import *
'''


def code_files() -> dict[str, str]:
    """
    The code that a repository carries at its root: names of files to their texts.

    It is `ENTRY` and the modules of this package that `CLASSES` need, found by their import statements.
    """
    texts: dict[Path, str] = {}
    waiting = [PACKAGE / module for module in CLASSES.values()]
    while waiting:
        path = waiting.pop()
        if path not in texts:
            texts[path], needed = _flattened(path)
            waiting += needed
    names = {path: flat_name(path) for path in sorted(texts, key=flat_name)}
    assert len({ENTRY, PART, *names.values()}) == len(names) + 2, "two modules have one name"
    offered: dict[Path, list[str]] = {path: [] for path in names}
    for name, module in {**CLASSES, "generate_images": CLASSES["Blip3oTextToImagePipeline"]}.items():
        offered[PACKAGE / module].append(name)
    imports = [f"from .{names[path]} import {', '.join(offered[path]) or '__name__ as _'}" for path in names]
    entry = _ENTRY_TEXT.format(
        digest=hashlib.sha256("".join(texts[path] for path in names).encode()).hexdigest()[:16],
        imports="\n".join(imports),
        exported="\n".join(f'    "{name}",' for name in sorted(CLASSES)),
    )
    files = {f"{name}.py": texts[path] for path, name in names.items()}
    return {f"{ENTRY}.py": _header("where its code starts") + entry, **files}


def flat_name(path: Path) -> str:
    """A module's name in the flat folder, with `blip3o` in it: diffusers puts code of all repositories together."""
    name = path.parent.name if path.name == "__init__.py" else path.stem
    return name if "blip3o" in name else f"blip3o_{name}"


def _header(module: str) -> str:
    return _HEADER.format(version=__version__, module=module)


def _flattened(path: Path) -> tuple[str, list[Path]]:
    """The text of a module for the flat folder, and the modules of this package that it imports from."""
    text = path.read_text(encoding="utf-8")
    lines, needed = text.splitlines(keepends=True), []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level:
            needed.append(_imported(path, node))
            form = f"from . {flat_name(needed[-1])} import"
            line = node.lineno - 1
            lines[line] = re.sub(r"\bfrom\s+\.+[\w.]+\s+import\b", form, lines[line], count=1)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any(map(_is_own, modules)), f"{path}:{node.lineno} needs the package itself"
    return _header(path.relative_to(PACKAGE).as_posix()) + _SPACE + "\n" + "".join(lines), needed


def _is_own(module: str) -> bool:
    return module.partition(".")[0] in (PACKAGE.name, PART)


def _imported(path: Path, node: ast.ImportFrom) -> Path:
    """The file of the module that a relative import names."""
    assert node.module, f"{path}:{node.lineno} needs a package and not a module"
    target = path.parents[node.level - 1].joinpath(*node.module.split("."))
    return target / "__init__.py" if target.is_dir() else target.with_suffix(".py")


def check_pipeline(folder: str | os.PathLike) -> dict:
    """
    The `model_index.json` of a saved pipeline that can carry code.

    Raises:
        ValueError: when it is damaged or that of another pipeline, or a part is missing or of another package.
    """
    folder = Path(folder)
    try:
        index = json.loads((folder / "model_index.json").read_bytes())
    except ValueError:
        index = None
    if not isinstance(index, dict):
        raise ValueError(
            f"A model_index.json holds settings as JSON. That of {folder} is damaged. Save or download it again."
        )
    pipeline = index.get("_class_name")
    if pipeline not in (PIPELINE, [ENTRY, PIPELINE]):
        raise ValueError(
            f"A repository carries the code of a {PIPELINE}. {folder} holds a {pipeline}. Export one that this "
            f"package saved."
        )
    for name, (library, class_name) in _parts(index).items():
        if library not in _LIBRARIES and not _is_own(library):
            raise ValueError(
                f"A repository carries the code of this package alone. In {folder}, {name} is a {class_name} of "
                f"{library}. Replace it with a part of this package, diffusers or transformers."
            )
        if not (folder / name).is_dir():
            raise ValueError(
                f"A saved pipeline has a folder for every part. {folder} has no {name}/. Save or download it again."
            )
    return index


def _parts(index: dict) -> dict[str, tuple[str, str]]:
    """The parts of a pipeline: their names to the libraries and names of their classes."""
    pairs = {name: value for name, value in index.items() if isinstance(value, list) and name != "_class_name"}
    return {name: tuple(value) for name, value in pairs.items() if len(value) == 2 and isinstance(value[0], str)}


def add_code(folder: str | os.PathLike) -> None:
    """
    Make a saved pipeline one that opens where this package is not installed, with `trust_remote_code=True`.

    Its files are changed in place: work on a copy. Calling it again brings the code up to date.

    Args:
        folder: of a saved pipeline, its weights stored once.

    Raises:
        ValueError: as `check_pipeline`.
    """
    folder = Path(folder)
    index = check_pipeline(folder)
    for name, text in code_files().items():
        (folder / name).write_text(text, encoding="utf-8")
    for name, (library, class_name) in _parts(index).items():
        if _is_own(library):
            index[name] = [PART, class_name]
            (folder / name / f"{PART}.py").write_text(
                _header("the way to it from a part") + _SPACE + "\n" + _PART_TEXT
            )
    index["_class_name"] = [ENTRY, PIPELINE]
    _write_json(folder / "model_index.json", index)
    for name, entries in (
        ("config.json", {"auto_map": AUTO_MAP, "custom_pipelines": TASKS}),
        ("processor_config.json", {"auto_map": {"AutoProcessor": AUTO_MAP["AutoProcessor"]}}),
    ):
        if (folder / name).is_file():
            _write_json(folder / name, json.loads((folder / name).read_bytes()) | entries)


def _write_json(path: Path, settings: dict) -> None:
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


__all__ = ["CLASSES", "ENTRY", "PART", "add_code", "check_pipeline", "code_files", "flat_name"]
