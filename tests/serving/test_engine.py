"""The model's thread: order, batches, a bounded queue, and jobs that nobody waits for any more."""

import threading
from concurrent.futures import CancelledError

import pytest
from tests.serving.held import Held

from blip3o_hf.serving.engine import Engine, Job
from blip3o_hf.serving.errors import ApiError
from blip3o_hf.serving.metrics import Metrics


class Sum(Job):
    """A job that says its number, and with which others it ran; it fails on `None`."""

    kind = "sum"
    ran: list[list]

    def __init__(self, number, key=None, rows=1):
        super().__init__()
        self.number, self.key, self.rows = number, key, rows

    @classmethod
    def run(cls, jobs):
        numbers = [job.number for job in jobs]
        cls.ran.append(numbers)
        if None in numbers:
            raise ValueError("no number")
        return [(number, len(jobs)) for number in numbers]


@pytest.fixture
def make_engine():
    """`make_engine(**settings)`: one that has started, with a job that keeps it busy until `gate.go.set()`."""
    made = []

    def make(**settings):
        Sum.ran = []
        engine, gate = Engine(Metrics(), **{"batch_wait": 0.0, **settings}), Held(10)
        made.append((engine, gate))
        engine.start()
        engine.submit(gate)
        assert gate.begun.wait(10)
        return engine, gate

    yield make
    for engine, gate in made:
        gate.go.set()
        engine.close()


def test_jobs_run_in_their_order_and_those_of_one_key_together(make_engine):
    engine, gate = make_engine(max_batch=8)
    jobs = [Sum(0), Sum(1, "a"), Sum(2, "b"), Sum(3, "a"), Sum(4), Sum(5, "b"), Sum(6)]
    for job in jobs:
        engine.submit(job)
    gate.go.set()
    assert [job.future.result(10) for job in jobs] == [(0, 1), (1, 2), (2, 2), (3, 2), (4, 1), (5, 2), (6, 1)]
    assert Sum.ran == [[0], [1, 3], [2, 5], [4], [6]]


def test_a_batch_has_at_most_so_many_rows_and_a_larger_job_is_alone(make_engine):
    engine, gate = make_engine(max_batch=4)
    jobs = [Sum(0, "a", rows=3), Sum(1, "a", rows=2), Sum(2, "a"), Sum(3, "a", rows=9), Sum(4, "a")]
    engine.submit(*jobs)
    gate.go.set()
    for job in jobs:
        job.future.result(10)
    assert Sum.ran == [[0, 2], [1, 4], [3]]
    rows = engine.metrics.registry.get_sample_value
    assert rows("blip3o_batch_rows_sum", {"kind": "sum"}) == 16
    assert rows("blip3o_batch_rows_count", {"kind": "sum"}) == 3


def test_the_first_job_waits_for_others(make_engine):
    engine, gate = make_engine(max_batch=3, batch_wait=10.0)
    gate.go.set()
    jobs = [Sum(number, "a") for number in range(3)]
    for job in jobs:
        engine.submit(job)
    assert [job.future.result(5) for job in jobs] == [(0, 3), (1, 3), (2, 3)]  # a full batch waits no longer


def test_a_full_queue_refuses_and_says_when_to_ask_again(make_engine):
    engine, gate = make_engine(max_waiting=2)
    waiting = [Sum(0), Sum(1)]
    engine.submit(*waiting)
    with pytest.raises(ApiError, match=r"At most 2 requests wait for the model\. 2 do\. Ask again later\.") as caught:
        engine.submit(Sum(2))
    error = caught.value
    assert (error.status, error.code, error.headers) == (429, "queue_full", {"Retry-After": "1"})
    assert error.body()["error"]["type"] == "rate_limit_error"
    waiting[0].cancel()
    with pytest.raises(ApiError):
        engine.submit(Sum(3), Sum(4))  # all or none
    engine.submit(Sum(5))
    assert engine.metrics.registry.get_sample_value("blip3o_waiting_jobs") == 2
    gate.go.set()
    engine.close()
    assert Sum.ran == [[1], [5]]


def test_a_job_that_nobody_waits_for_never_runs_and_is_not_kept(make_engine):
    engine, gate = make_engine(max_waiting=4)
    for number in range(100):  # clients that ask and go
        job = Sum(number)
        engine.submit(job)
        job.cancel()
        with pytest.raises(CancelledError):
            job.future.result(0)
    last = Sum("last")
    engine.submit(last)
    assert len(engine._waiting) == 1
    gate.go.set()
    assert last.future.result(10) == ("last", 1)
    assert Sum.ran == [["last"]]


def test_a_batch_is_not_mixed_when_its_first_job_is_cancelled_while_it_waits(make_engine):
    engine, gate = make_engine(max_batch=8, batch_wait=0.1)
    first, second, third = Sum(0, "a"), Sum(1, "b"), Sum(2, "a")
    gate.go.set()
    gate.future.result(10)
    engine.submit(first, second, third)
    first.cancel()
    assert second.future.result(10) == (1, 1) and third.future.result(10) == (2, 1)


def test_a_job_that_is_cancelled_while_it_runs_can_know(make_engine):
    _, gate = make_engine()
    gate.cancel()
    assert gate.is_cancelled and not gate.future.cancelled()
    gate.go.set()
    assert gate.future.result(10) is None


def test_a_bad_job_does_not_spoil_its_batch(make_engine):
    engine, gate = make_engine(max_batch=8)
    jobs = [Sum(0, "a"), Sum(None, "a"), Sum(2, "a")]
    engine.submit(*jobs)
    gate.go.set()
    with pytest.raises(ValueError, match="no number"):
        jobs[1].future.result(10)
    assert jobs[0].future.result(10) == (0, 1) and jobs[2].future.result(10) == (2, 1)
    again = Sum(3)
    engine.submit(again)
    assert again.future.result(10) == (3, 1)


def test_closing_finishes_what_was_accepted_and_takes_nothing_more(make_engine):
    engine, gate = make_engine()
    jobs = [Sum(number) for number in range(5)]
    engine.submit(*jobs)
    closing = threading.Thread(target=engine.close)
    closing.start()
    while not engine._is_closed:
        pass
    with pytest.raises(ApiError, match=r"The server must be running\. It stops\. Ask again later\.") as caught:
        engine.submit(Sum(9))
    assert (caught.value.status, caught.value.code) == (503, "stopping")
    assert caught.value.body()["error"]["type"] == "server_error"
    gate.go.set()
    closing.join(10)
    assert [job.future.result(0) for job in jobs] == [(number, 1) for number in range(5)]
    assert not engine._thread.is_alive()


def test_an_engine_that_never_started_can_be_closed():
    Engine(Metrics()).close()
