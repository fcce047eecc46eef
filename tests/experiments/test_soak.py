"""The soak's own arithmetic: a run that is level passes, and each number that grows is found out by name."""

import random

import pytest

from experiments.soak.run import BOUNDS, FIELDS, HERE, LEAST, broken, read, report

LEVEL = {"rss_mb": 700.0, "objects": 500_000.0, "descriptors": 7.0, "threads": 5.0, "children": 0.0, "files": 6.0}
LEVEL |= {"event_kb": 0.0, "checkpoint_kb": 2800.0, "other_kb": 5700.0}


def soak(count=200, growing=None, by=0.0, start=1.0):
    """Samples of a start, ten iterations and five seconds apart, one number growing by so much with each."""
    draw = random.Random(0)
    samples = []
    for i in range(count):
        at = LEVEL | {"start": start, "iteration": 10.0 * (i + 1), "wall_seconds": 6.0 * i, "cpu_seconds": 5.0 * i}
        at["rss_mb"] += draw.uniform(-5, 5)
        at["event_kb"] = 620.0 * i
        if growing == "cpu_seconds":
            at[growing] += by * i * i / 2
        elif growing:
            at[growing] += by * i
        samples.append(at)
    return samples


def test_a_level_run_passes():
    assert set(soak()[0]) == set(FIELDS)
    assert broken(soak()) == []
    assert "| resident memory, MB | 32 |" in report(soak())


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("rss_mb", 0.3),
        ("objects", 5),
        ("descriptors", 0.1),
        ("threads", 0.1),
        ("children", 0.1),
        ("files", 0.1),
        ("event_kb", 300),
        ("other_kb", 30),
        ("cpu_seconds", 0.02),
    ],
)
def test_what_grows_is_found_out(name, by):
    (line,) = broken(soak(growing=name, by=by))
    assert line.startswith(f"start 1: {BOUNDS[name][0]} grew by ")
    # Each start is judged by itself: the level one after it does not hide the one that grew.
    assert broken(soak(growing=name, by=by) + soak(start=2.0)) == [line]


def test_a_start_that_is_too_short_tells_nothing():
    assert broken(soak(LEAST - 1)) == [f"no start has {LEAST} samples: too short to tell whether anything grows"]


def test_the_soak_that_is_told_about_stayed_within_its_bounds():
    samples = read(HERE / "samples.csv")
    assert broken(samples) == []
    assert report(samples) in (HERE / "README.md").read_text(encoding="utf-8")
