"""What a page computes runs in one thread, whoever asks, and errors and contexts find their way."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import pytest

from visual_ar.app.device_thread import DeviceThread

visitor = ContextVar("visitor", default="nobody")


def identity():
    return threading.get_ident()


def test_work_of_all_threads_runs_in_one():
    thread = DeviceThread()
    with ThreadPoolExecutor(4) as pool:
        idents = set(pool.map(lambda _: thread.call(identity), range(20)))
    assert len(idents) == 1 and threading.get_ident() not in idents


def test_errors_are_raised_where_the_work_was_asked_for():
    thread = DeviceThread()

    def fail():
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        thread.call(fail)
    assert thread.call(lambda: "still there") == "still there"


def test_a_handler_sees_its_visitor_and_a_generator_lets_others_in_between():
    thread, closed = DeviceThread(), []

    def steps(count):
        try:
            for number in range(count):
                yield number, visitor.get(), identity()
        finally:
            closed.append(count)

    visitor.set("first")
    first = thread.handler(steps)(3)
    assert next(first)[:2] == (0, "first")
    visitor.set("second")
    second = list(thread.handler(steps)(2))
    assert [(number, who) for number, who, _ in second] == [(0, "second"), (1, "second")]
    assert next(first) == (1, "first", second[0][2])
    first.close()
    assert closed == [2, 3]
    assert thread.handler(lambda: visitor.get())() == "second"
