"""The state of one call while it samples: its own scheduler, and what a callback or another thread may change."""

import copy
import functools
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import SchedulerMixin

from .sampling_arguments import as_number

_LOCK = threading.Lock()
_SCHEDULERS_IN_USE: set[int] = set()


@contextmanager
def scheduler_of_run(scheduler: SchedulerMixin) -> Generator[SchedulerMixin]:
    """
    A scheduler that nothing else steps: the given one, or a copy of it if another thread, or the call around this one,
    has not finished its steps.
    """
    with _LOCK:
        is_free = id(scheduler) not in _SCHEDULERS_IN_USE
        if is_free:
            _SCHEDULERS_IN_USE.add(id(scheduler))
    try:
        # The shallow copy comes first, since the other thread may change the attributes meanwhile.
        yield scheduler if is_free else copy.deepcopy(copy.copy(scheduler))
    finally:
        if is_free:
            with _LOCK:
                _SCHEDULERS_IN_USE.discard(id(scheduler))


def in_one_thread(method: Callable) -> Callable:
    """
    Makes a method usable by one thread at a time: while one thread runs such a method of an object, a second thread
    gets a `RuntimeError`.
    """

    @functools.wraps(method)
    def checked(self, *args: Any, **kwargs: Any) -> Any:
        thread = threading.get_ident()
        with _LOCK:
            is_outermost = "_thread" not in self.__dict__
            if self.__dict__.setdefault("_thread", thread) != thread:
                raise RuntimeError(
                    f"`{checked.__name__}` must not be called while another thread is running a call of the same "
                    f"{type(self).__name__}. Wait for it, or make another one."
                )
        try:
            return method(self, *args, **kwargs)
        finally:
            if is_outermost:
                with _LOCK:
                    del self._thread

    return checked


@dataclass(eq=False)
class SamplingRun:
    """
    A call that samples.

    Attributes:
        thread: in which it runs.
        is_exclusive: whether it depends on state of the model that all calls share.
        guidance_scale: of the present stage.
        num_timesteps: of the present stage.
        current_timestep: of the present step; `None` between stages.
        interrupt: whether the rest of the steps is to be left out.
        was_interrupted: whether some were.
    """

    thread: int
    is_exclusive: bool = False
    guidance_scale: float | None = None
    num_timesteps: int | None = None
    current_timestep: torch.Tensor | None = None
    interrupt: bool = False
    was_interrupted: bool = False


class Blip3oSamplingRunsMixin:
    """
    What callbacks of diffusers read and change: `interrupt`, `guidance_scale`, `num_timesteps`, `current_timestep`.

    Each call has its own. In a callback, `pipe` means the call that called it; in a thread without a call, all that
    run.
    """

    @property
    def guidance_scale(self) -> float | None:
        """Of the present steps, or of the last ones; `None` before the first call."""
        run = self._run
        return None if run is None else run.guidance_scale

    @property
    def num_timesteps(self) -> int | None:
        """How many steps the present stage has, or the last one had; `None` before the first call."""
        run = self._run
        return None if run is None else run.num_timesteps

    @property
    def current_timestep(self) -> torch.Tensor | None:
        """The scheduler's timestep of the present step; `None` where no steps are taken."""
        run = self._run
        return None if run is None else run.current_timestep

    @property
    def interrupt(self) -> bool:
        """Whether the present call, or the last one, was told to leave out its remaining steps."""
        run = self._run
        return run is not None and (run.interrupt or run.was_interrupted)

    @property
    def _guidance_scale(self) -> float | None:
        return self.guidance_scale

    @_guidance_scale.setter
    def _guidance_scale(self, value: float) -> None:
        """From the next step on; 0 switches guidance off, as the callbacks of diffusers mean it."""
        for run in self._addressed_runs():
            run.guidance_scale = as_number(value) or 1.0

    @property
    def _interrupt(self) -> bool:
        return self.interrupt

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        """
        Leave out the remaining steps of the stage that runs. The decoder still makes pixels of what there is, and no
        picture is drawn again.
        """
        for run in self._addressed_runs():
            run.interrupt = bool(value)

    @property
    def _runs(self) -> list[SamplingRun]:
        """The calls that run now, the latest last."""
        return self.__dict__.setdefault("_sampling_runs", [])

    @property
    def _run(self) -> SamplingRun | None:
        """The call that the properties speak of: this thread's, or else any that runs, or else the last."""
        runs, last = list(self._runs), self.__dict__.get("_last_run")
        here = [run for run in (last, *runs) if run is not None and run.thread == threading.get_ident()]
        return (here or runs or [last])[-1]

    def _addressed_runs(self) -> list[SamplingRun]:
        """This thread's innermost call, or else the innermost one of every thread."""
        innermost = {run.thread: run for run in list(self._runs)}
        here = innermost.get(threading.get_ident())
        return list(innermost.values()) if here is None else [here]

    @contextmanager
    def _sampling_run(self, is_exclusive: bool = False) -> Generator[SamplingRun]:
        """
        A call, from its first stage to its last.

        Raises:
            RuntimeError: when it, or another that runs in another thread, is exclusive.
        """
        run = SamplingRun(threading.get_ident(), is_exclusive)
        with _LOCK:
            around = [other for other in self._runs if other.thread == run.thread]
            others = [other for other in self._runs if other.thread != run.thread]
            if others and any(each.is_exclusive for each in (run, *others)):
                raise RuntimeError(
                    "Calls at the same time must not change what all of them use: a cache of block outputs, or the "
                    "scale of adapters (`attention_kwargs`). Another thread's call is running. Wait for it, or load a "
                    "pipeline for each thread."
                )
            self._runs.append(run)
        try:
            yield run
        finally:
            self._runs.remove(run)
            self._last_run = run
            if around:
                around[-1].was_interrupted |= run.was_interrupted

    @contextmanager
    def _sampling_stage(self, guidance_scale: float, num_timesteps: int) -> Generator[SamplingRun]:
        """The steps of one stage, in the call that this thread is in, or else as a call of their own."""
        with ExitStack() as stack:
            runs = [run for run in self._runs if run.thread == threading.get_ident()]
            run = runs[-1] if runs else stack.enter_context(self._sampling_run(self._shares_state))
            around = replace(run)
            run.guidance_scale, run.num_timesteps = guidance_scale, num_timesteps
            try:
                yield run
            finally:
                run.was_interrupted |= run.interrupt
                run.interrupt = False
                run.current_timestep = around.current_timestep
                if around.current_timestep is not None:  # inside of a step's callback
                    run.guidance_scale, run.num_timesteps = around.guidance_scale, around.num_timesteps

    @property
    def _shares_state(self) -> bool:
        """Whether the model keeps something from step to step, so that two calls at once would mix it up."""
        return False


__all__ = ["Blip3oSamplingRunsMixin", "SamplingRun", "in_one_thread", "scheduler_of_run"]
