"""Files on their way to the disk while more is written: whoever waits for them at the end waits for the last part only."""

from __future__ import annotations

import threading
from types import TracebackType

from sparse_xmc.storage import atomic


class Flusher:
    """Has files written to disk from a thread of its own, for the time of a ``with`` statement.

    Linux would begin when a tenth of the memory waits for the disk, and until then the disk does nothing.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: list[str] = []
        self._busy = self._over = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def begin(self, path: str) -> None:
        """Has what a file holds by now written to disk soon."""
        with self._changed:
            if path not in self._due:
                self._due.append(path)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="sparse_xmc flusher")
                self._thread.start()
            self._changed.notify_all()

    def finish(self) -> None:
        """Waits for everything that was begun.

        Raises:
            OSError: the first of what kept it from the disk.
        """
        with self._changed:
            while (self._due or self._busy) and self._error is None:
                self._changed.wait()
            if self._error is not None:
                raise self._error

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._due and not self._over:
                    self._changed.wait()
                if self._over or self._error is not None:
                    return
                path, self._busy = self._due.pop(0), True
            error: BaseException | None = None
            try:
                atomic.flush(path)
            except BaseException as failure:
                error = failure
            with self._changed:
                self._busy, self._error = False, error
                self._changed.notify_all()
                if error is not None:
                    return

    def __enter__(self) -> Flusher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
