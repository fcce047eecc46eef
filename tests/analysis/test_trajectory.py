import dataclasses

import pytest
import torch

from rhythm.analysis.study import analyze
from rhythm.analysis.trajectory import movement, policies
from rhythm.policy import Policy
from rhythm.seeding import seed_adapter
from tests.policies import perturb
from tests.training import EMBEDDED, countdown


def test_a_policy_has_not_moved_from_itself_and_another_has(policy, found, small):
    here = movement(policy, found, found, small)
    assert set(here["heads"].values()) == set(here["amplified"].values()) == {1.0}
    seed_adapter(0)
    other = perturb(Policy(EMBEDDED, rank=4, alpha=8), scale=0.05)
    alone = dataclasses.replace(small, perturbation=None)
    there = analyze(other, countdown(), alone)
    assert "perturbation" not in there.tables
    moved = movement(other, there, found, alone)
    assert all(0 < value < 1 for value in moved["amplified"].values())


def test_beside_each_agreement_stands_what_chance_gives(policy, found, small):
    chance = movement(policy, found, found, small)
    assert chance["heads_by_chance"].keys() == chance["heads"].keys()
    # 14 of 48 heads twice: 14·14/48 in common on average, 4.08 of the 23.92 of either; the mean ratio is a little more.
    assert chance["heads_by_chance"]["local"] == pytest.approx(4.08 / 23.92, abs=0.01)
    # 40% of a response's tokens: 0.16 of all in both, 0.64 in either.
    for value in chance["amplified_by_chance"].values():
        assert value == pytest.approx(0.16 / 0.64, abs=0.02)


def saved(path, iteration):
    path.parent.mkdir(exist_ok=True)
    torch.save({"iteration": iteration, "state_dict": {}}, path)
    return path


def test_a_folder_of_checkpoints_is_the_base_and_each_iteration_in_order(tmp_path):
    folder = tmp_path / "checkpoints"
    for name, iteration in {"last": 20, "previous": 10, "iteration_000005": 5, "best": 10}.items():
        saved(folder / f"{name}.ckpt", iteration)
    found = policies(str(folder))
    assert list(found) == ["base", "iteration 5", "iteration 10", "iteration 20"]
    assert list(found.values())[1:] == [folder / f"{name}.ckpt" for name in ("iteration_000005", "previous", "last")]
    assert policies(str(tmp_path)) == {str(tmp_path): folder / "last.ckpt"}  # a run folder is its end


def test_a_list_is_its_items_each_once(tmp_path):
    last = saved(tmp_path / "checkpoints" / "last.ckpt", 3)
    assert policies(None) == {"base": None}
    assert policies([None, str(last)]) == {"base": None, str(last): last}
    with pytest.raises(ValueError, match=r"ckpt_path=\[\]: name a run"):
        policies([])
    with pytest.raises(ValueError, match="ckpt_path: null is named twice"):
        policies([None, None])
    with pytest.raises(ValueError, match=r"last\.ckpt is named twice"):
        policies([str(last), str(tmp_path)])
