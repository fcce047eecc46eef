"""The table of what a look costs."""

import csv

from experiments.look_cost import run as look_cost


def test_the_first_look_is_left_out_and_each_is_held_against_its_own_iteration(tmp_path):
    path = tmp_path / "results.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(look_cost.FIELDS)
        pairs = [(1, 100), (2, 1), (2, 2), (4, 2), (4, 8)]  # ratios 0.5, 1, 0.5, 2
        writer.writerows([i, *pair, 128, 9000, 300, 400] for i, pair in enumerate(pairs, 1))
    header, _, row = (line.strip("| ").split(" | ") for line in look_cost.report(path).splitlines())
    found = dict(zip(header, row, strict=True))
    assert (found["an iteration, s"], found["a look, s"], found["n"]) == ("3.00", "2.00", "4")
    assert (found["look to iteration, median"], found["range"]) == ("0.75", "0.50 to 2.00")
