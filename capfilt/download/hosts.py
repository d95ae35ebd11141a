"""Manners towards one host: so many requests at once, and none while it has asked to wait."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class _Host:
    free: threading.Condition
    users: int = 0
    """Threads that ask it or wait to."""
    busy: int = 0
    not_before: float = 0.0


class Hosts:
    """`limit`: requests at once to one host. Hosts that nobody uses are forgotten.

    No deadlock as long as a thread holds one slot at a time and waits for nothing else within it.
    """

    def __init__(
        self, limit: int, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._limit, self._clock, self._sleep = limit, clock, sleep
        self._lock = threading.Lock()
        self._hosts: dict[str, _Host] = {}

    @contextmanager
    def slot(self, name: str) -> Iterator[None]:
        """One of the host's slots; waits for it, and then for as long as the host is held back."""
        host = self._enter(name)
        try:
            while (left := host.not_before - self._clock()) > 0:
                self._sleep(left)
            yield
        finally:
            self._leave(name, host)

    def hold(self, name: str, seconds: float) -> None:
        """No request to the host begins before that many seconds are over."""
        with self._lock:
            host = self._known(name)
            host.not_before = max(host.not_before, self._clock() + seconds)

    def _known(self, name: str) -> _Host:
        return self._hosts.setdefault(name, _Host(threading.Condition(self._lock)))

    def _enter(self, name: str) -> _Host:
        with self._lock:
            host = self._known(name)
            host.users += 1
            host.free.wait_for(lambda: host.busy < self._limit)
            host.busy += 1
        return host

    def _leave(self, name: str, host: _Host) -> None:
        with self._lock:
            host.busy -= 1
            host.users -= 1
            host.free.notify()
            if not host.users and host.not_before <= self._clock():
                del self._hosts[name]
