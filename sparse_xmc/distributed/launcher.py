"""Ends a ``torchrun`` that can't see that its ranks have ended.

torchrun asks its store without a limit in time. With the link to the store's host cut it waits until TCP gives up, a
quarter of an hour by Linux's defaults, and does not look after its ranks meanwhile.
"""

from __future__ import annotations

import os
import subprocess
import sys

GRACE = 10.0  # seconds in which a launcher that is well has long seen the end of its rank
_WATCH = """
import os, sys, time

rank, launcher, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])

def status():
    try:
        with open(f"/proc/{rank}/stat", encoding="ascii", errors="replace") as file:
            state, parent = file.read().rpartition(")")[2].split()[:2]
    except OSError:
        return "gone"
    return state if int(parent) == launcher else "gone"

ended = None
while (now := status()) != "gone":
    if now == "Z":
        ended = ended or time.monotonic()
        if time.monotonic() > ended + seconds:
            print(f"torchrun (process {launcher}) has not seen for {seconds:.0f} s that its rank ended, as it waits for "
                  "its store: ended too", file=sys.stderr, flush=True)
            os.kill(launcher, 9)
            break
    time.sleep(0.1)
"""


def end_blocked_launcher(grace: float = GRACE) -> None:
    """Called by a rank at its end: if torchrun has not taken notice of that after ``grace`` seconds, it is ended too.

    A rank that torchrun has taken notice of is gone from the table of processes; else it stays there under its parent.
    Does nothing for ranks that torchrun did not start, and where there is no ``/proc``.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and os.path.exists("/proc/self/stat"):
        arguments = [str(os.getpid()), str(os.getppid()), str(grace)]
        subprocess.Popen([sys.executable, "-I", "-S", "-c", _WATCH, *arguments], start_new_session=True)
