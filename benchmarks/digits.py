"""Fine-tune blip3o-tiny on real handwriting by one command, and let a classifier read what it writes. See README.md.

The images are scikit-learn's 1,797 scanned digits of 8 x 8 pixels, enlarged to 64 x 64; nothing is downloaded.
"""
# ruff: noqa: T201 - a script that reports on standard output

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC
from tqdm import tqdm

from blip3o_hf import Blip3oPipeline
from blip3o_hf.cli import main as blip3o_hf
from blip3o_hf.evaluation.sheets import contact_sheet
from blip3o_hf.evaluation.statistics import Rate
from blip3o_hf.hub.cards import update_card
from blip3o_hf.hub.provenance import now, versions
from blip3o_hf.hub.results import Evaluation, Figure, Score

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZE = 64


def enlarge(scan: np.ndarray) -> Image.Image:
    """A scan `[8, 8]` of values from 0 to 16 as a grey image."""
    grey = Image.fromarray(np.rint(scan * 255 / 16).astype(np.uint8))
    return grey.resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def shrink(image: Image.Image) -> np.ndarray:
    """An image as the classifier reads it: 64 values from 0 to 16."""
    small = image.convert("L").resize((8, 8), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64).ravel() * 16 / 255


def write_images(folder: Path, scans: np.ndarray, labels: np.ndarray) -> None:
    """The scans as an image folder with captions such as "a handwritten seven"."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index, (scan, label) in enumerate(zip(scans, labels, strict=True)):
        enlarge(scan).save(folder / f"{index:04d}.png")
        rows.append({"file_name": f"{index:04d}.png", "caption": f"a handwritten {WORDS[label]}"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_digits(scans: np.ndarray, labels: np.ndarray) -> tuple[SVC, float]:
    """A classifier trained on all scans, and the accuracy of one trained on half of them on the other half."""
    pixels = np.stack([shrink(enlarge(scan)) for scan in scans])
    known, unknown, known_labels, unknown_labels = train_test_split(pixels, labels, test_size=0.5, random_state=0)
    accuracy = SVC(gamma=0.001).fit(known, known_labels).score(unknown, unknown_labels)
    return SVC(gamma=0.001).fit(pixels, labels), accuracy


def enter(arguments: argparse.Namespace, rate: Rate, right: dict[str, np.ndarray], accuracy: float) -> None:
    """Leave the figures as `results.json`, and in the card of the fine-tuned model."""
    rates = {"overall": rate, **{word: Rate(int(own.sum()), len(own)) for word, own in right.items()}}
    evaluation = Evaluation(
        benchmark="Handwritten digits, read by a classifier",
        about=(
            "95 % Wilson intervals. A digit that was asked for by name passes when a support vector machine, trained "
            f"on all real scans, reads it as that digit; one trained on half of them reads {accuracy:.3f} of the "
            "others. One picture for each prompt and seed, nothing chosen."
        ),
        command="python benchmarks/digits.py",
        date=now(),
        settings={
            "seeds from": 0,
            "steps": arguments.steps,
            "decoder steps": arguments.decoder_steps,
            "pictures per digit": arguments.per_digit,
        },
        versions=versions(),
        scores=tuple(
            Score("text-to-image", name, Figure(own.value, own.interval), own.total) for name, own in rates.items()
        ),
    )
    evaluation.write(arguments.work / "results.json")
    update_card(arguments.work / "generation" / "pipeline" / "README.md", evaluations=[evaluation])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/digits"), help="folder for data and results")
    parser.add_argument("--steps", type=int, default=900, help="steps of queries and transformer")
    parser.add_argument("--decoder-steps", type=int, default=400, help="steps of the decoder")
    parser.add_argument("--per-digit", type=int, default=20, help="images to write of each digit")
    parser.add_argument("--sheet", type=Path, default=Path("docs/digits.png"), help="where the picture goes")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    arguments = parser.parse_args()

    scans, labels = load_digits(return_X_y=True)
    scans = scans.reshape(-1, 8, 8)
    classifier, accuracy = read_digits(scans, labels)
    write_images(arguments.work / "images", scans, labels)
    start = time.perf_counter()
    command = ["finetune", "--data", str(arguments.work / "images"), "--output", str(arguments.work)]
    command += ["--steps", str(arguments.steps), "--decoder-steps", str(arguments.decoder_steps)]
    command += ["--prompts", *(f"a handwritten {word}" for word in WORDS)]
    if blip3o_hf(command + ["--resume"] * arguments.resume):
        raise SystemExit("The fine-tuning failed.")
    minutes = (time.perf_counter() - start) / 60

    pipe = Blip3oPipeline.from_pretrained(arguments.work / "generation" / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    asked = np.tile(np.arange(10), arguments.per_digit)
    images = []
    for first in tqdm(range(0, len(asked), 20), desc="writing digits"):
        prompts = [f"a handwritten {WORDS[digit]}" for digit in asked[first : first + 20]]
        generators = [torch.Generator().manual_seed(first + index) for index in range(len(prompts))]
        images += pipe(prompts, generator=generators).images
    read = classifier.predict(np.stack([shrink(image) for image in images]))
    captions = [WORDS[digit] for digit in asked[:50]]
    contact_sheet(images[:50], captions, columns=10, size=SIZE).save(arguments.sheet)

    rate = Rate(int((read == asked).sum()), len(asked))
    print(f"{arguments.decoder_steps} decoder steps and {arguments.steps} steps in {minutes:.1f} minutes")
    print(f"read as asked: {rate} of {len(asked)} written digits, 95 % interval, seeds from 0")
    print(f"the classifier reads {accuracy:.3f} of real digits that it was not trained on")
    for digit, word in enumerate(WORDS):
        print(f"  {word:6s} {(read[asked == digit] == digit).mean():.2f}")
    enter(arguments, rate, {word: (read[asked == digit] == digit) for digit, word in enumerate(WORDS)}, accuracy)


if __name__ == "__main__":
    main()
