"""A job that keeps the model's thread busy."""

import threading

from blip3o_hf.serving.engine import Job


class Held(Job):
    """
    Runs until it is let go.

    Args:
        seconds: after which it fails.
    """

    kind = "held"

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds
        self.begun, self.go = threading.Event(), threading.Event()

    @classmethod
    def run(cls, jobs):
        jobs[0].begun.set()
        assert jobs[0].go.wait(jobs[0].seconds)
        return [None]
