"""Fifty prompts in the format of each benchmark, drawn with the packaged model by one command."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from blip3o_hf.cli import main
from blip3o_hf.evaluation.benchmarks import BENCHMARKS, find_benchmark
from blip3o_hf.evaluation.manifests import Manifest
from blip3o_hf.shapes import render, sample_example
from blip3o_hf.shapes.benchmark import held_out_prompts

NUMBER = 50
FAST = ["--steps", "1", "--attempts", "1", "--no-plan", "--batch-size", "25"]


@pytest.fixture(scope="module")
def texts():
    return list(dict.fromkeys(prompt.text for prompt in held_out_prompts(20)))[:NUMBER]


def prompt_file(name, folder, texts):
    """A file, or a folder, of prompts in the format of a benchmark."""
    path = folder / "prompts.jsonl"
    rows = [{"id": f"p{number}", "prompt": text, "text": "two words"} for number, text in enumerate(texts)]
    if name == "geneval":
        include = [{"class": "bench", "count": 1}]
        rows = [{"tag": "single_object", "include": include, "prompt": text} for text in texts]
    elif name == "geneval2":
        questions = [["Is there a circle?", "yes"], ["How many circles are there?", "two"]]
        more = {"atom_count": 3, "vqa_list": questions, "skills": ["object", "count"]}
        rows = [{"prompt": text, **more} for text in texts]
    elif name in ("imgedit", "gedit"):
        scene = sample_example(np.random.default_rng(0)).scene
        Image.fromarray(render(scene)).save(folder / "in.png")
        row = {"edit_task": "color", "instruction": "make it red", "image": "in.png", "language": "en"}
        rows = [{"key": f"k{number}", **row} for number in range(NUMBER)]
    elif name == "dpg":
        path = folder / "prompts"
        path.mkdir()
        for number, text in enumerate(texts):
            (path / f"{number}.txt").write_text(text)
        return path
    elif name.startswith("wise"):
        path = folder / "prompts.json"
        rows = [{"prompt_id": n, "Prompt": text, "Category": "biology"} for n, text in enumerate(texts, start=1)]
        path.write_text(json.dumps(rows))
        return path
    elif name == "mjhq":
        path = folder / "meta_data.json"
        path.write_text(json.dumps({f"i{n}": {"category": "art", "prompt": text} for n, text in enumerate(texts)}))
        return path
    elif name.startswith("unigenbench"):
        path = folder / "prompts.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["index", "prompt", "sub_dims"])
            writer.writerows([n, text, json.dumps({"1": ["color"]})] for n, text in enumerate(texts))
        return path
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def brightness(pictures, rows):
    return [float(np.asarray(picture).mean()) for picture in pictures]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_one_command_draws_lays_out_and_scores(name, tmp_path, texts):
    words = ["evaluate", name, "--limit", str(NUMBER), *FAST, "--output", str(tmp_path / "run")]
    if name == "shapes":
        words += ["--per-family", "7"]
    else:
        words += ["--prompts", str(prompt_file(name, tmp_path, texts))]
    if name == "ocr":
        pytest.importorskip("rapidocr")
    if name == "own":
        words += ["--scorer", f"{__name__}:brightness"]
    if name == "geneval2":
        words += ["--judge", "blip3o-tiny"]
    assert main(words) == 0
    manifest, kind = Manifest.read(tmp_path / "run" / "manifest.json"), find_benchmark(name)
    assert len(manifest.pictures) == NUMBER * kind.pictures_per_prompt
    assert bool(manifest.evaluation.scores) == (name in ("geneval2", "ocr", "own", "shapes"))
    assert (tmp_path / "run" / "layout").is_dir() == (name not in ("ocr", "own", "shapes"))
