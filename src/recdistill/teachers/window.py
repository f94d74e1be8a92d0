"""How many calls an API bears at once, as it says itself."""

from __future__ import annotations

import math
import threading
import time

_ROUNDS = 10
"""Rounds of calls for which it stays small, so that what is too much is not tried at every other call."""


class Window:
    """How many calls may be in flight; any number of threads may share it.

    Half as many each time that the API says that it is too much; then as many for ten rounds of successes, after which
    it is one more each time that as many have succeeded.

    >>> window = Window(8)
    >>> window.shrink(sent_at=0.0), window.free(0)
    (True, 4)
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.size = float(most)
        self.in_flight = 0
        self._shrunk_at = -math.inf
        self._held = 0
        """Successes until it may grow again."""
        self._lock = threading.Lock()

    def free(self, in_flight: int) -> int:
        """Return how many more may be sent."""
        return max(0, int(self.size) - in_flight)

    def enter(self) -> bool:
        """Take a place, if there is one, among the calls in flight of all threads."""
        with self._lock:
            entered = self.free(self.in_flight) > 0
            self.in_flight += entered
        return entered

    def leave(self) -> None:
        """Give a place back."""
        with self._lock:
            self.in_flight -= 1

    def grow(self) -> None:
        """Take note of a success."""
        with self._lock:
            if self._held:
                self._held -= 1
            else:
                self.size = min(float(self.most), self.size + 1 / self.size)

    def shrink(self, sent_at: float) -> bool:
        """Take note of a call that was too much; false if it was sent before the last such note, which counts once."""
        with self._lock:
            if sent_at <= self._shrunk_at:
                return False
            self.size = max(1.0, self.size / 2)
            self._held = _ROUNDS * int(self.size)
            self._shrunk_at = time.monotonic()
        return True
