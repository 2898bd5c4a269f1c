"""Ctrl-C loses no work: the step is finished, a whole checkpoint is written, and only then the run ends."""

import contextlib
import os
import signal
import threading
from collections.abc import Generator

from transformers import TrainerCallback
from transformers.utils import logging

logger = logging.get_logger(__name__)


class TrainingInterrupted(KeyboardInterrupt):
    """A run was interrupted, and its last checkpoint holds all of it. The text says where."""


class InterruptCallback(TrainerCallback):
    """
    Within `listening`, the first SIGINT (Ctrl-C) ends training after the step, with a checkpoint; a second one acts as
    it would without: Python raises `KeyboardInterrupt` at once. What a library makes of that on its way out, such as
    an error of loading or writing, is an interruption, too.

    It is for one process. Several would stop at different steps, and launchers end them all by themselves.
    """

    def __init__(self):
        self.is_interrupted = False
        self.is_stopped = False

    def on_step_end(self, args, state, control, **kwargs):
        if self.is_interrupted:
            control.should_save = control.should_training_stop = True

    @contextlib.contextmanager
    def listening(self) -> Generator[None]:
        """
        Within the block, SIGINT is ours, unless another thread runs the block, or the signal is ignored.

        Raises:
            KeyboardInterrupt: after a second SIGINT, in the place of any error that came of it.
        """
        before = signal.getsignal(signal.SIGINT)
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or before in (None, signal.SIG_IGN):
            yield
            return
        process = os.getpid()

        def stop_at_once(number, frame):
            self.is_stopped = True
            signal.signal(signal.SIGINT, before)
            signal.raise_signal(signal.SIGINT)

        def stop(number, frame):
            signal.signal(signal.SIGINT, stop_at_once)
            self.is_interrupted = True
            if os.getpid() == process:  # workers that load data inherit the handler, and must live until the step ends
                logger.warning("Interrupted. A checkpoint is written after this step; Ctrl-C again stops at once.")

        signal.signal(signal.SIGINT, stop)
        try:
            yield
        except Exception as error:
            if not self.is_stopped:
                raise
            raise KeyboardInterrupt from error
        finally:
            signal.signal(signal.SIGINT, before)
