"""A study from folders of pictures: blind pairs, control pairs, and pictures that say nothing but their pixels."""

import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from PIL import Image

from ...checks import check_sizes
from ...files import check_can_write
from ..benchmarks.base import Item
from .criteria import PAPER_CRITERIA, Criterion
from .pictures import SystemPictures, prompts_with_pictures, read_prompts
from .study import ANSWERS, IDENTICAL, IMAGES, Key, Pair, Study, checksum


def make_study(
    folder: str | os.PathLike,
    systems: Mapping[str, str | os.PathLike],
    prompts: str | os.PathLike,
    seed: int = 0,
    rounds: int = 2,
    control: int = 10,
    criteria: Sequence[Criterion] = PAPER_CRITERIA,
    ties: bool = False,
    size: int | None = None,
    skip_missing: bool = False,
) -> tuple[Study, Key, list[str]]:
    """
    Write a study: study.json, key.json, images/ and an empty answers/, all of it or nothing.

    The same arguments give the same files. Names of pictures are checksums of their pixels.

    Args:
        folder: that does not exist yet, or is empty.
        systems: folders of pictures by the names of two systems or more; all pairs of them are compared.
        prompts: as [`read_prompts`] reads them.
        seed: of names, orders and control pairs.
        rounds: how many times each rater is asked the same; the paper had two.
        control: number of control pairs: half of them show one picture twice, half repeat another pair.
        criteria: what is asked; by default in the words of the paper, section 5.4.
        ties: whether raters may answer "no difference"; in the paper they had to choose.
        size: scale every picture to this width in pixels, keeping its shape, as where systems draw different sizes.
        skip_missing: leave out prompts of which a system has no picture.

    Returns:
        the study, its key, and notes on what was left out.

    Raises:
        ValueError: when there are fewer than two systems, pictures are missing, or two of one prompt differ in size.
        OSError: when the folder holds files, or cannot be written.
    """
    check_sizes(1, rounds=rounds, **({} if size is None else {"size": size}))
    check_sizes(0, control=control, seed=seed)
    target = check_can_write(folder, "The study's folder")
    if target.is_dir() and any(target.iterdir()):
        raise FileExistsError(f"A study needs a folder of its own. {target} holds files. Choose another.")
    items = read_prompts(prompts)
    if len(systems) < 2 or not all(name.strip() for name in systems):
        raise ValueError(f"A study compares two systems with names or more. Got {list(systems)}. Name their folders.")
    found = [SystemPictures.find(name, path, [item.id for item in items]) for name, path in systems.items()]
    kept = prompts_with_pictures(items, found, skip_missing)
    if control > 2 * len(kept):
        raise ValueError(f"`control` may be at most twice the prompts, {2 * len(kept)}. Got {control}. Lower it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=".partial-"))
    try:
        making = _Making(partial, seed, size)
        pairs = [pair for item in kept for pair in making.pairs_of(item, found)]
        pairs += making.controls(pairs, control)
        pairs.sort(key=lambda pair: pair.id)
        study = Study(partial, seed, rounds, ties, tuple(criteria), tuple(pairs))
        left_out = tuple(sorted({item.id for item in items} - {item.id for item in kept}))
        key = Key(study.id, tuple(systems), making.owners, making.control_of, left_out)
        study.write()
        key.write(partial)
        (partial / ANSWERS).mkdir()
        partial.chmod(0o755)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Study.read(target), key, _notes(left_out, found)


class _Making:
    """What a study gathers while it is made: pictures written, their owners, and which pairs are controls."""

    def __init__(self, folder: Path, seed: int, size: int | None):
        self.folder, self.seed, self.size = folder, seed, size
        self.owners: dict[str, str] = {}
        self.control_of: dict[str, str] = {}
        (folder / IMAGES).mkdir()

    def pairs_of(self, item: Item, systems: Sequence[SystemPictures]) -> list[Pair]:
        """All pairs of systems for one prompt; writes their pictures."""
        pictures = {system.name: self._scaled(system.open(item.id)) for system in systems}
        sizes = {name: picture.size for name, picture in pictures.items()}
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{width} x {height} of {name}" for name, (width, height) in sizes.items())
            raise ValueError(
                f"Pictures of one prompt must have one size, or it would tell the system. Those of {item.id} have "
                f"{told}. Scale all with --size 512; if their shapes differ, draw or crop them again."
            )
        names = {}
        for system, picture in pictures.items():
            names[system] = self._name(item.id, picture)
            self.owners[names[system]] = system
        for system, name in sorted(names.items(), key=lambda entry: entry[1]):  # times of files say nothing either
            self._save(pictures[system], name)
        return [self._pair(item.id, item.prompt, names[a], names[b]) for a, b in combinations(names, 2)]

    def controls(self, pairs: Sequence[Pair], number: int) -> list[Pair]:
        """Control pairs: every other one shows one picture twice, the rest repeat a pair."""
        choice = random.Random(self.seed)
        made = []
        for pair in choice.sample(pairs, (number + 1) // 2):
            shown = choice.choice(pair.images)
            copy = _hashed(f"{self.seed}|copy|{pair.id}")
            shutil.copyfile(self.folder / IMAGES / shown, self.folder / IMAGES / copy)
            self.owners[copy] = self.owners[shown]
            made.append(self._pair(pair.prompt_id, pair.prompt, shown, copy))
            self.control_of[made[-1].id] = IDENTICAL
        for pair in choice.sample(pairs, number // 2):
            made.append(self._pair(pair.prompt_id, pair.prompt, *pair.images, again="again"))
            self.control_of[made[-1].id] = pair.id
        return made

    def _scaled(self, picture: Image.Image) -> Image.Image:
        if self.size is None:
            return picture
        height = max(1, round(picture.height * self.size / picture.width))
        return picture.resize((self.size, height), Image.Resampling.LANCZOS)

    def _name(self, prompt_id: str, picture: Image.Image) -> str:
        """Unlike that of any other picture, also where two systems drew the same pixels."""
        pixels = hashlib.sha256(picture.tobytes()).hexdigest()
        copies = 0
        while True:
            name = _hashed(f"{self.seed}|{prompt_id}|{picture.size}|{pixels}|{copies}")
            if name not in self.owners:
                return name
            copies += 1

    def _save(self, picture: Image.Image, name: str) -> None:
        plain = Image.frombytes("RGB", picture.size, picture.tobytes())  # pixels alone: no profile, text or date
        plain.save(self.folder / IMAGES / name, format="PNG")

    def _pair(self, prompt_id: str, prompt: str, first: str, second: str, again: str = "") -> Pair:
        images = (min(first, second), max(first, second))
        return Pair(checksum(f"{self.seed}|{prompt_id}|{images}|{again}"), prompt_id, prompt, images)


def _hashed(words: str) -> str:
    """The name of a picture."""
    return hashlib.sha256(words.encode()).hexdigest()[:24] + ".png"


def _notes(left_out: Sequence[str], systems: Sequence[SystemPictures]) -> list[str]:
    notes = []
    if left_out:
        notes.append(f"left out, since a system has no picture of it: {', '.join(left_out)}")
    for system in systems:
        if system.others:
            notes.append(
                f"{len(system.others)} pictures of {system.name} belong to no prompt, such as {system.others[0]}"
            )
    return notes
