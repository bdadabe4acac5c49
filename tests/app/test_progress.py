"""Progress without a terminal: a line every ten seconds with rate and time left."""

import io

from sparse_xmc._progress import Meter


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def metered(total, steps, seconds, **options):
    clock, stream = Clock(), io.StringIO()
    meter = Meter("training", "steps", total, stream=stream, clock=clock, **options)
    for _ in range(steps):
        clock.now += seconds
        meter.update()
    meter.close()
    return stream.getvalue().splitlines()


def test_a_line_every_ten_seconds():
    lines = metered(100, 50, 1.0)
    assert len(lines) == 5
    assert lines[0] == "training: 10 of 100 steps (10 %), 1.00 a second, 1 min 30 s left"
    assert lines[-1] == "training: 50 of 100 steps (50 %), 1.00 a second, 50 s left"


def test_work_done_before_counts_but_not_for_the_rate():
    (line,) = metered(7200 * 2, 1, 10.0, done=7199)
    assert line == "training: 7,200 of 14,400 steps (50 %), 0.10 a second, 20 h 00 min left"


def test_an_unknown_total_and_a_note():
    clock, stream = Clock(), io.StringIO()
    meter = Meter("reading a.txt", "lines", stream=stream, clock=clock)
    meter.note("loss 0.5")
    clock.now = 10
    meter.update(5000)
    assert stream.getvalue() == "reading a.txt: 5,000 lines, 500 a second, loss 0.5\n"


def test_short_work_and_hidden_work_say_nothing():
    assert metered(9, 9, 1.0) == []
    assert metered(100, 100, 1.0, shown=False) == []


def test_over_counts_what_is_done():
    meter = Meter("x", "items", shown=False)
    assert list(meter.over("abc")) == ["a", "b", "c"] and meter.done == 3
