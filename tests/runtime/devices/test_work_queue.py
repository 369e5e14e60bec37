"""Work in order on one thread, and urgent work that comes first."""

import threading
from concurrent.futures import CancelledError, Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicort.runtime.devices.host import HostDevice
from vicort.runtime.devices.urgency import Urgency
from vicort.runtime.devices.work_queue import WorkQueue


@pytest.fixture
def queue():
    queue = WorkQueue("one", Urgency())
    yield queue
    queue.close(wait=True)


def held(queue):
    """Puts work that ends when the event is set; returns once it is in progress."""
    began, gate = threading.Event(), threading.Event()
    queue.put(lambda: (began.set(), gate.wait(timeout=30)))
    assert began.wait(timeout=30)
    return gate


@given(st.lists(st.booleans(), max_size=12))
def test_work_runs_in_order_and_what_is_put_first_runs_before_the_rest(first):
    queue, log = WorkQueue("one"), []
    gate = held(queue)
    futures = [
        (queue.put_first if urgent else queue.put)(log.append, number)
        for number, urgent in enumerate(first)
    ]
    gate.set()
    for future in futures:
        future.result(timeout=30)
    queue.close(wait=True)
    numbers = range(len(first))
    assert log == [n for n in numbers if first[n]] + [n for n in numbers if not first[n]]


def test_work_that_waits_runs_what_is_put_first_and_nothing_else(queue):
    waiting, log, began = Future(), [], threading.Event()

    def work():
        began.set()
        queue.wait(waiting)
        log.append("waited")

    ended, after = queue.put(work), queue.put(log.append, "after")
    assert began.wait(timeout=30)
    assert [queue.put_first(lambda n=n: n).result(timeout=30) for n in range(3)] == [0, 1, 2]
    assert log == []
    waiting.set_result(None)
    ended.result(timeout=30)
    after.result(timeout=30)
    assert log == ["waited", "after"]


def test_a_wait_ends_for_a_future_that_fails_or_is_cancelled(queue):
    for end in (lambda each: each.set_exception(ValueError()), lambda each: each.cancel()):
        waiting = Future()
        work = queue.put(queue.wait, waiting)
        end(waiting)
        work.result(timeout=30)


def test_an_error_goes_to_its_own_future_alone(queue):
    failed = queue.put(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failed.result(timeout=30)
    assert queue.put(lambda: 7).result(timeout=30) == 7


def test_ordinary_work_waits_for_urgent_work_and_what_is_put_first_does_not():
    urgency = Urgency()
    queue = WorkQueue("one", urgency)
    with urgency.urgent_work():
        ordinary = queue.put(lambda: "ordinary")
        assert queue.put_first(lambda: "first").result(timeout=30) == "first"
        assert not ordinary.done()
    assert ordinary.result(timeout=30) == "ordinary"
    queue.close(wait=True)


def test_closing_cancels_what_has_not_begun_and_takes_no_more(queue):
    gate = held(queue)
    left = [queue.put(lambda: 1), queue.put_first(lambda: 2)]
    threading.Timer(0.1, gate.set).start()
    queue.close(wait=True)
    for future in left:
        with pytest.raises(CancelledError):
            future.result(timeout=30)
    with pytest.raises(RuntimeError):
        queue.put(lambda: 3)


def test_work_in_progress_may_wait_for_other_streams_while_something_comes_first():
    """As a prefill does for its copies of recalled pages."""
    device = HostDevice()
    prefill, copies = device.stream("prefill"), device.stream("copies")
    gate, began = threading.Event(), threading.Event()

    def work():
        began.set()
        gate.wait(timeout=30)
        return copies.run(lambda: "copied").done(timeout=5)

    working = prefill.run(work)
    assert began.wait(timeout=30)
    first = prefill.run_first(lambda: "first")
    gate.set()
    assert working.done(timeout=30) == "copied"
    assert first.done(timeout=30) == "first"
    device.close()
