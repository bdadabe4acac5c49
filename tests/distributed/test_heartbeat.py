"""Signs of life end with the rank."""

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from sparse_xmc.distributed.heartbeat import Heartbeat


class SlowStore:
    """A store whose answers to signs of life can be held back."""

    def __init__(self, store):
        self.store, self.asked, self.answers = store, threading.Event(), threading.Event()
        self.answers.set()

    def clone(self):
        return self

    def set(self, key, value):
        if value not in ("1", "done"):
            self.asked.set()
            assert self.answers.wait(30)
        self.store.set(key, value)

    def __getattr__(self, name):
        return getattr(self.store, name)


@pytest.fixture
def store():
    own = dist.HashStore()
    own.set_timeout(timedelta(seconds=5))
    return SlowStore(own)


def test_no_thread_is_in_a_call_of_the_store_when_a_rank_is_at_its_end(store):
    store.answers.clear()
    heartbeat = Heartbeat(store, 0, 1, timeout=1.0)
    assert store.asked.wait(30)  # a sign of life is under way
    threading.Timer(0.2, store.answers.set).start()
    heartbeat.close()
    assert not any(thread.is_alive() for thread in heartbeat._threads)
    assert store.get("alive/0") == b"done"


def test_a_thread_that_ends_the_process_may_close(store):
    closed = threading.Event()

    def end(text):
        heartbeat.close()
        closed.set()

    heartbeat = Heartbeat(store, 0, 1, timeout=0.5, end=end)
    heartbeat._give_up("by hand")
    assert closed.is_set()
    ended = threading.Event()
    thread = threading.Thread(target=lambda: (heartbeat._threads.append(thread), heartbeat.close(), ended.set()))
    thread.start()
    assert ended.wait(30)
