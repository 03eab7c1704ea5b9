"""A hold on the passes of an engine, for tests that say how far it may get."""

import threading

WAIT = 300  # seconds; machines that run tests are busy


class HeldPasses:
    """Lets an engine make no pass, as many as a test allows, or all once it is opened."""

    def __init__(self, engine, monkeypatch):
        self._changed = threading.Condition()
        self._allowed, self._begun = 0, 0
        method = engine.pipe.scheduler
        step = method.step

        def held(state):
            with self._changed:
                self._begun += 1
                self._changed.notify_all()
                assert self._changed.wait_for(lambda: self._allowed >= self._begun, WAIT)
            return step(state)

        monkeypatch.setattr(method, "step", held)

    def allow(self, passes):
        """Lets so many more passes through, and waits until another one is asked for."""
        with self._changed:
            self._allowed += passes
            self._changed.notify_all()
        self.wait()

    def wait(self):
        """Waits until a pass is asked for that is not allowed."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._begun > self._allowed, WAIT)

    def open(self):
        """Lets everything through from now on."""
        with self._changed:
            self._allowed = float("inf")
            self._changed.notify_all()
