"""Stand-ins for what a study runs: a training that writes what a real one leaves, and measures of that."""

import json
from pathlib import Path

from blip3o_hf.study.measuring import RunMeasure
from blip3o_hf.training.chain import Summary


class Killed(BaseException):
    """The study's process ends here, as by SIGKILL."""


class Clock:
    """Counts the moments at which a study may be killed, and kills it at one of them."""

    def __init__(self):
        self.now, self.end = 0, None

    def tick(self):
        self.now += 1
        if self.now == self.end:
            raise Killed


class Runs:
    """
    In the place of `run_command`.

    Attributes:
        given: the words of each command behind `train`.
        finished: folders, each as often as a run ended well there.
        codes: to fail with, by the name of a folder, once.
        scores: of the last evaluation, by the name of a folder; 0.5 by default.
    """

    def __init__(self, clock):
        self.clock, self.given, self.finished, self.codes, self.scores = clock, [], [], {}, {}

    def __call__(self, command):
        words = command[command.index("train") + 1 :]
        self.given.append(words)
        settings = dict(word.partition("=")[::2] for word in words if "=" in word)
        folder = Path(settings["output_dir"])
        checkpoint = folder / "checkpoints" / "checkpoint-1"
        assert ("--resume" in words) == (checkpoint / "COMPLETE").is_file()
        self.clock.tick()
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "COMPLETE").touch()
        self.clock.tick()
        if folder.name in self.codes:
            return self.codes.pop(folder.name)
        self.leave(folder, settings)
        self.clock.tick()
        self.finished.append(str(folder))
        return 0

    def leave(self, folder, settings):
        rate, steps = float(settings.get("training.learning_rate", 0)), int(settings.get("training.max_steps", 4))
        history = [{"step": step, "eval_overall": step / 10, "loss": 1.0} for step in range(1, steps + 1)]
        (folder / "history.json").write_text(json.dumps(history))
        (folder / "result.json").write_text(json.dumps([rate, int(settings["training.seed"])]))
        scores = {"overall": self.scores.get(folder.name, 0.5)}
        Summary("decoder", "decoder.yaml", steps, 2, 1.0, 3.0, 1, scores).write(folder)


class Result(RunMeasure):
    """Values that tell of the run's settings; `asked` counts."""

    asked: list = []
    clock = Clock()

    def __call__(self, run):
        self.asked.append(run.name)
        self.clock.tick()
        rate, seed = json.loads((run / "result.json").read_text())
        return {"rate": [rate, rate, rate + seed], "whole": [rate + seed * self.settings.get("times", 1)]}


class Given(RunMeasure):
    """What the settings say."""

    def __call__(self, run):
        return self.settings["values"]
