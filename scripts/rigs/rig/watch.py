"""Samples of a process while it runs."""

import threading

from . import victim


class Watch:
    """The most anonymous memory that a process ever had: what is its own, without the page cache that it maps. Ends with the process."""

    def __init__(self, pid, every=0.01):
        self.pid, self.every, self.most, self._stop = pid, every, 0, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stop.wait(self.every):
            try:
                self.most = max(self.most, victim.anonymous_bytes(self.pid))
            except (OSError, RuntimeError):
                return

    def end(self):
        """Stops; bytes."""
        self._stop.set()
        self._thread.join()
        return self.most
