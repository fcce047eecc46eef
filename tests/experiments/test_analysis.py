"""What the README of the default analysis tells is what was written, and the analysis takes four minutes at most."""

import json

import pytest

from experiments.analysis.run import HERE, LIMIT, once, read, report


def test_the_readme_has_the_numbers_of_the_analysis():
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    (tables,) = json.loads((HERE / "analysis.json").read_text(encoding="utf-8"))["analyses"].values()
    for of in tables["coupling"].values():
        low, high = of["interval"]
        lift = f"{of['lift']:+.0%} [{low * 100:+.0f}, {high * 100:+.0f}]"
        assert f"| {of['observed']:.3f} | {of['expected']:.3f} | {lift} | {of['p']:.3f} |" in readme
    for side in ("top", "bottom", "matched"):
        of, (low, high) = tables["perturbation"][side], tables["perturbation"][side]["interval"]
        assert f"| {of['overlap']:.3f} [{low:.3f}, {high:.3f}] | {of['depth']:.2f} | {of['entropy']:.2f} |" in readme
    for other in ("bottom", "matched"):
        of = tables["perturbation"][f"top_below_{other}"]
        low, high = of["interval"]
        assert f"| {of['share']:.0%} [{low * 100:.0f}, {high * 100:.0f}]" in readme
        low, high = of["difference_interval"]
        assert f"| {of['difference']:.3f} [{low:.3f}, {high:.3f}] |".replace("-", "−") in readme


def test_the_analysis_that_is_told_about_stayed_within_its_limit():
    rows = read(HERE / "results.csv")
    assert len(rows) >= 5
    assert max(row["seconds"] for row in rows) <= LIMIT
    assert report(rows) in (HERE / "README.md").read_text(encoding="utf-8")


def test_the_table_has_the_middle_and_the_ends_of_each_number_of_threads():
    pairs = [(2, 30), (1, 60), (1, 90), (2, 50), (1, 70), (2, 40)]
    rows = [{"threads": threads, "seconds": seconds, "peak_mb": 9 * seconds} for threads, seconds in pairs]
    assert report(rows).splitlines()[2:] == ["| 1 | 70 | 60 to 90 | 3 | 810 |", "| 2 | 40 | 30 to 50 | 3 | 450 |"]


@pytest.mark.slow
def test_the_default_analysis_ends_in_time():
    assert once(threads=1)["seconds"] <= LIMIT  # one thread: two that share their cores wait for each other
