import pytest

from rhythm import stopwatch
from rhythm.stopwatch import Stopwatch


@pytest.fixture
def clock(monkeypatch):
    """A stopwatch, and the time it reads."""
    now = [100.0]
    monkeypatch.setattr(stopwatch, "perf_counter", lambda: now[0])
    return Stopwatch(), now


def test_stages_nest_and_add_up(clock):
    watch, now = clock
    with watch("iteration"):
        for seconds in (2.0, 3.0):
            with watch("sample"):
                now[0] += seconds
        now[0] += 1.0
    assert watch.metrics() == {"time/sample": 5.0, "time/iteration": 6.0}


def test_a_stage_that_fails_is_counted(clock):
    watch, now = clock

    @watch("sample")
    def fail():
        now[0] += 4.0
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert watch.seconds["sample"] == 4.0
