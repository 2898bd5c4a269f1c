"""Prompts to pairs of prompt and picture: drawn, looked at, and written in shards that can be made again."""

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .checks import SafetyFilter
from .costs import Budget
from .duplicates import SeenPictures
from .endpoint import unicode_text
from .folder import CollectionFolder
from .prompts import Prompt
from .shards import ShardItems, look_name
from .teachers import Answer, DrawingRequest, Teacher

SECTION = "pictures"
"""Of the settings of a folder: those on which pictures depend."""


@dataclass
class Progress:
    """
    How far a collection is.

    Attributes:
        num_prompts: all of them.
        num_pairs: that are in shards.
        num_open: prompts without an answer.
        dropped: how many pictures were dropped for which reason.
    """

    num_prompts: int
    num_pairs: int = 0
    num_open: int = 0
    dropped: Counter = field(default_factory=Counter)

    def add(self, num_prompts: int, manifest: Mapping[str, Any] | None) -> None:
        """Add a shard of so many prompts, by its manifest where it was written."""
        self.num_pairs += manifest["pairs"] if manifest else 0
        self.num_open += len(manifest["open"]) if manifest else num_prompts
        self.dropped.update(manifest["dropped"]["counts"] if manifest else {})


@dataclass
class Collector:
    """
    Collects pairs into a folder.

    Args:
        folder: opened for this run.
        prompts: in order; shard `n` is of the prompts from `n * shard_size` on.
        shard_size: prompts of a shard. Pairs may be fewer, since some are dropped.
        seed: picture `i` is drawn with `seed + i`.
        provenance: what every manifest says of teacher, terms and checks.
        settings: that are kept with the first answer, and with which later runs go on.
        check (*optional*): whether a picture shows its prompt, as [`~pipelines.checking.Checker`].
        safety (*optional*): whether a picture may be kept.
        budget: of all pictures; those of earlier runs are counted, too.
        report: called with the ids of answers as they come.
    """

    folder: CollectionFolder
    prompts: Sequence[Prompt]
    shard_size: int = 500
    seed: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    check: Any = None
    safety: SafetyFilter | None = None
    budget: Budget = field(default_factory=Budget)
    report: Callable[[Sequence[str]], None] = lambda ids: None

    def __post_init__(self):
        self.num_shards = -(-len(self.prompts) // self.shard_size)
        self._numbers = {prompt.id: number for number, prompt in enumerate(self.prompts)}
        self._complete = [bool(self._manifest(shard).get("complete")) for shard in range(self.num_shards)]
        for shard, is_complete in enumerate(self._complete):
            kept = self._manifest(shard)["pictures_drawn"] if is_complete else self._num_billed(self._of_shard(shard))
            self.budget.count(kept)

    def _manifest(self, shard: int) -> dict[str, Any]:
        return self.folder.manifest(shard) or {}

    def _num_billed(self, prompts: Sequence[Prompt]) -> int:
        found = (self.folder.kept(prompt.id) for prompt in prompts)
        return sum(bool(each[0]["is_billed"]) for each in found if each is not None)

    def _of_shard(self, shard: int) -> Sequence[Prompt]:
        return self.prompts[shard * self.shard_size : (shard + 1) * self.shard_size]

    def request(self, prompt: Prompt) -> DrawingRequest:
        """What a teacher is asked for a prompt."""
        return DrawingRequest(prompt.id, prompt.text, self.seed + self._numbers[prompt.id])

    def open_prompts(self) -> list[Prompt]:
        """Prompts without an answer, in order."""
        shards = (self._of_shard(shard) for shard in range(self.num_shards) if not self._complete[shard])
        return [prompt for prompts in shards for prompt in prompts if not self.folder.has(prompt.id)]

    def keep(self, name: str, answer: Answer) -> None:
        """Keep an answer of a teacher."""
        if self.folder.has(name) or self._complete[self._numbers[name] // self.shard_size]:
            return
        if self.folder.saved(SECTION) is None:
            self.folder.save_settings(SECTION, self.settings)
        problem = None if answer.problem is None else unicode_text(answer.problem)
        notes = {key: unicode_text(value) for key, value in answer.notes.items()}
        header = {"problem": problem, "notes": notes, "is_billed": answer.is_billed}
        self.folder.keep(name, header, answer.data or b"")
        self.budget.count(answer.is_billed)
        self.report([name])

    def run(self, teacher: Teacher | None = None) -> Progress:
        """
        Draw what is open, as far as the budget reaches, and write the shards.

        Args:
            teacher: draws; without one, shards are written of the answers that are there.

        Raises:
            OSError: when an endpoint does not answer. What was drawn is kept, and the next run goes on there.
        """
        progress, seen = Progress(len(self.prompts)), SeenPictures()
        for shard in range(self.num_shards):
            prompts = self._of_shard(shard)
            if self._complete[shard]:
                self._clean(shard)
                for name, print_ in self._manifest(shard)["fingerprints"].items():
                    seen.add(name, print_)
            else:
                if teacher is not None:
                    self._draw(teacher, prompts)
                self._write(shard, seen)
            progress.add(len(prompts), self.folder.manifest(shard))
        return progress

    def _draw(self, teacher: Teacher, prompts: Sequence[Prompt]) -> None:
        size = teacher.group_size or len(prompts)
        for start in range(0, len(prompts), size):
            group = prompts[start : start + size]
            missing = [prompt for prompt in group if not self.folder.has(prompt.id)]
            if teacher.group_size and len(missing) > self.budget.num_left:
                return
            missing = missing[: int(min(len(missing), self.budget.num_left))]
            if missing:
                asked = group if teacher.group_size else missing
                self._ask(teacher, [self.request(prompt) for prompt in asked])

    def _ask(self, teacher: Teacher, requests: Sequence[DrawingRequest]) -> None:
        waiting = {request.id for request in requests}
        answers = iter(teacher.draw(requests))
        try:
            for name, answer in answers:
                if name not in waiting:
                    raise ValueError(f"A teacher must answer each request once, by its id. It answered {name!r:.60}.")
                waiting.remove(name)
                self.keep(name, answer)
        finally:
            if isinstance(answers, Generator):
                answers.close()  # so that nothing more is asked after an interruption
        if waiting:
            raise ValueError(
                f"A teacher must answer each request once, by its id. It left out {len(waiting)}, such as "
                f"{min(waiting)}. Give an `Answer` with a `problem` where there is no picture."
            )

    def _write(self, shard: int, seen: SeenPictures) -> None:
        """Write a shard of the answers that are there; none where there are none."""
        prompts = self._of_shard(shard)
        answered = [prompt for prompt in prompts if self.folder.has(prompt.id)]
        if not answered:
            return
        items = ShardItems(self.folder, shard, seen, self.check, self.safety)
        tar = self.folder.write_shard(shard, items.of(answered))
        open_ids = [prompt.id for prompt in prompts if not self.folder.has(prompt.id)]
        # Pictures are compared with those of all shards before, so a shard is final after these are.
        is_complete = not open_ids and all(self._complete[:shard])
        drawn = self._num_billed(prompts)
        manifest = {
            "complete": is_complete,
            "prompts": [prompts[0].id, prompts[-1].id],
            "pairs": len(items.fingerprints),
            "open": open_ids,
            "dropped": {
                "counts": dict(sorted(Counter(each.reason for each in items.dropped).items())),
                "items": [asdict(each) for each in items.dropped],
            },
            "pictures_drawn": drawn,
            "cost": None if self.budget.price is None else str(self.budget.price * drawn),
            **self.provenance,
            "seed": self.seed,
            "fingerprints": items.fingerprints,
        }
        self.folder.write_manifest(shard, {**tar, **manifest})
        self._complete[shard] = is_complete
        if is_complete:
            self._clean(shard)

    def _clean(self, shard: int) -> None:
        """Delete the answers of a shard that is final."""
        prompts = self._of_shard(shard)
        self.folder.forget([*(prompt.id for prompt in prompts), look_name(shard)])
