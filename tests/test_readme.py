"""What the README shows works as it stands there."""

import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from rhythm.evaluation.studies import Study
from tests.credit.test_contract import assert_other_rows_do_not_matter, assert_padding_does_not_matter, batch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def example(monkeypatch):
    """The strategy that the README adds, made from its two blocks."""
    code = re.search(r"```python\n# anywhere importable, say (\w+).py\n(.*?)```", README, re.DOTALL)
    config = re.search(r"```yaml\n# configs/credit/\w+.yaml\n(.*?)```", README, re.DOTALL)
    assert len(code[0].splitlines()) <= 2 + 20
    module = ModuleType(code[1])
    exec(code[2], vars(module))
    monkeypatch.setitem(sys.modules, code[1], module)
    return instantiate(yaml.safe_load(config[1]))


def test_the_strategy_of_the_readme_keeps_the_contract(example):
    assert_padding_does_not_matter(example)
    assert_other_rows_do_not_matter(example)


def test_the_strategy_of_the_readme_amplifies_what_it_says(example):
    signals, mask = batch(example)
    credit = example(signals, mask)
    assert (credit[~mask] == 1).all()
    for row in range(3, 5):
        fai = signals.fai[row, mask[row]]
        torch.testing.assert_close(credit[row, mask[row]], torch.where(fai > fai.nanmean(), 1.5, 1.0))


def test_the_study_of_the_readme_composes_with_its_strategy(tmp_path):
    configs = shutil.copytree(ROOT / "configs", tmp_path / "configs")
    credit = re.search(r"```yaml\n# configs/(credit/\w+.yaml)\n(.*?)```", README, re.DOTALL)
    (configs / credit[1]).write_text(credit[2], encoding="utf-8")
    block = re.search(r"```yaml\n# experiments/\w+/study.yaml\n(.*?)```", README, re.DOTALL)[1]
    (tmp_path / "study.yaml").write_text(block, encoding="utf-8")
    study = Study.load(tmp_path)
    assert yaml.safe_load(block)["baseline"] in study.arms
    with initialize_config_dir(str(configs), version_base="1.3"):
        uniform, steep = (compose("train", [*study.common, *overrides]) for overrides in study.arms.values())
    assert (uniform.credit._target_, steep.credit._target_) == ("rhythm.credit.UniformCredit", "my_credit.SteepCredit")
    assert "attention_signals" in steep.callbacks
    assert "attention_signals" not in uniform.callbacks
    assert uniform.iterations == steep.iterations == 60


def test_the_signals_of_the_readme_are_read():
    block = re.search(r"```python\n(import torch\nfrom rhythm import Policy.*?)```", README, re.DOTALL)[1]
    found = {}
    exec(block, found)
    signals, mask = found["signals"], found["completion_mask"]
    assert signals.fai.shape == mask.shape
    assert signals.waad.isnan().equal(~mask)
    assert signals.fai[mask].isfinite().sum() == mask.sum() - 2  # nothing looks back at the last two from two away
