"""Politeness towards each host: a limit on concurrent requests, and no request while the host asked to wait."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class _Host:
    free: threading.Condition
    users: int = 0
    """Threads with a request or waiting for a slot."""
    busy: int = 0
    not_before: float = 0.0


class Hosts:
    """Request slots per host. Hosts without users are forgotten.

    There is no deadlock as long as a thread holds one slot at a time and waits for no other thread while holding it.

    Args:
        limit: concurrent requests per host.
        clock: seconds.
        sleep: waits; `clock` advances meanwhile.
    """

    def __init__(
        self, limit: int, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._limit, self._clock, self._sleep = limit, clock, sleep
        self._lock = threading.Lock()
        self._hosts: dict[str, _Host] = {}

    @contextmanager
    def slot(self, name: str) -> Iterator[None]:
        """Context manager: wait for one of the host's slots, then until its `hold` is over."""
        host = self._enter(name)
        try:
            while (left := host.not_before - self._clock()) > 0:
                self._sleep(left)
            yield
        finally:
            self._leave(name, host)

    def hold(self, name: str, seconds: float) -> None:
        """Start no request to the host for that many seconds."""
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
