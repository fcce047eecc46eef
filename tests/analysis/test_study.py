import dataclasses
import json
import re

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from rhythm.analysis.results import to_json
from rhythm.analysis.study import AnalysisSettings, analyze
from tests.test_configs import composed
from tests.training import countdown


def test_an_analysis_has_every_table_and_plain_values(found, told):
    tables = json.loads(to_json(found.tables))
    assert set(tables) == {"responses", "perturbation", "coupling", "layers", "alignment", "heads", "tokens"}
    assert tables["responses"]["count"] == 6
    assert set(tables["layers"]) == {"bottom", "middle", "top"}
    assert set(tables["alignment"]["offsets"]) == {"-1", "0", "1"}
    assert set(tables["coupling"]) == {"entropy_at_waad_peaks", "receiver_peaks_global", "fai_after_waad"}
    # On time and just after are the two offsets of the third statistic.
    offsets = tables["alignment"]["offsets"]
    both = offsets["0"]["observed"] + offsets["1"]["observed"]
    assert tables["coupling"]["fai_after_waad"]["observed"] <= both + 1e-9
    assert tables["perturbation"]["top"]["problems"] == 6
    stages = list(dict.fromkeys(stage for stage, _ in told))
    assert stages == ["responses", "attention", "greedy originals", "forced tokens", "statistics"]
    for stage in stages:
        shares = [share for told_of, share in told if told_of == stage]
        assert shares == sorted(set(shares))  # one bar, which never begins again
        assert shares[-1] == 1.0


def test_what_is_not_finite_is_null_and_reads_back():
    kept = [{"lift": 0.5, "n": 3, "at": None}]
    found = {"p": float("nan"), "interval": (float("-inf"), np.float64("nan")), "of": kept}
    text = to_json(found)
    assert not {"NaN", "Infinity"} & set(re.findall(r"\w+", text))
    assert json.loads(text) == {"p": None, "interval": [None, None], "of": kept}


def test_an_analysis_repeats_itself(policy, found, small):
    again = analyze(policy, countdown(), small)
    assert json.dumps(again.tables) == json.dumps(found.tables)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"responses": 1}, "responses=1: must be a whole number, 2 or more"),
        ({"responses": 2.5}, r"responses=2\.5: must be a whole number"),
        ({"seed": -1}, "seed=-1: must be a whole number, 0 or more"),
        ({"temperature": -1.0}, "temperature=-1.0: must be a number, at least 0"),
        ({"top_fraction": 0.0}, "top_fraction=0.0"),
        ({"offsets": []}, r"offsets=\[\]: takes whole numbers"),
        ({"offsets": ["a"]}, r"offsets=\['a'\]: takes whole numbers"),
        ({"offsets": [0.5]}, r"offsets=\[0.5\]: takes whole numbers"),
        ({"offsets": [1, 1]}, r"offsets=\[1, 1\]: takes whole numbers of tokens, each once"),
        ({"permute": "flip"}, "permute=flip: use one of shuffle, rotate"),
        ({"short": "skip"}, "short=skip: use one of refuse, leave_out"),
        ({"head_fraction": 0.8}, "head_fraction=0.8: each group"),
        ({"receiver_fraction": 0.0}, "receiver_fraction=0.0: each group"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        AnalysisSettings(**changes)


def test_more_responses_than_problems(policy):
    with pytest.raises(ValueError, match="responses=600: the task has only 512 held-out problems"):
        analyze(policy, countdown(), AnalysisSettings(responses=600))


def test_the_defaults_of_the_config_are_those_of_the_library():
    cfg = composed(config="analyze")
    names = [field.name for field in dataclasses.fields(AnalysisSettings)]
    made = AnalysisSettings(**instantiate(OmegaConf.create({name: cfg[name] for name in names}), _convert_="all"))
    for field in dataclasses.fields(AnalysisSettings):
        mine, default = getattr(made, field.name), getattr(AnalysisSettings(), field.name)
        assert (list(mine) == list(default)) if field.name == "offsets" else (mine == default), field.name
