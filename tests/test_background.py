"""Work in the background tells how far it is, hands over its end, and stops when nobody waits."""

import threading

import pytest

from visual_ar.app.background import Finished, Progress, watched
from visual_ar.app.device_thread import DeviceThread


def test_progress_and_result_come_in_order():
    def work(report):
        report(1, 2)
        report(2, 2)
        return "result"

    events = list(watched(work, DeviceThread().start))
    assert events == [Progress(1, 2), Progress(2, 2), Finished("result")]


def test_errors_reach_whoever_waits():
    def work(report):
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        list(watched(work, DeviceThread().start))


def test_leaving_ends_the_work():
    go_on, ended = threading.Event(), threading.Event()

    def work(report):
        try:
            report(0, 2)
            go_on.wait()
            report(1, 2)
            raise AssertionError("nobody waits")
        finally:
            ended.set()

    events = watched(work, DeviceThread().start)
    assert next(events) == Progress(0, 2)
    events.close()
    go_on.set()
    assert ended.wait(300)
