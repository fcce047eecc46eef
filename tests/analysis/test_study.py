import dataclasses
import json

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from rhythm.analysis.perturbation import PerturbationSettings
from rhythm.analysis.report import report, shown_responses
from rhythm.analysis.study import AnalysisSettings, analyze, movement
from rhythm.attention.definitions import SignalSettings
from rhythm.policy import Policy
from rhythm.seeding import seed_adapter
from tests.policies import perturb
from tests.test_configs import composed
from tests.training import EMBEDDED, countdown

SMALL = AnalysisSettings(
    responses=6,
    max_completion_tokens=70,
    signals=SignalSettings(window=5, horizon=(0, None)),
    perturbation=PerturbationSettings(positions=1, alternatives=2),
    resamples=100,
)


@pytest.fixture(scope="module")
def policy():
    return Policy(EMBEDDED)


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def found(policy, told):
    return analyze(policy, countdown(), SMALL, lambda stage, share: told.append((stage, share)))


def test_an_analysis_has_every_table_and_plain_values(found, told):
    tables = json.loads(json.dumps(found.tables, allow_nan=True))
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


def test_an_analysis_repeats_itself(policy, found):
    again = analyze(policy, countdown(), SMALL)
    assert json.dumps(again.tables) == json.dumps(found.tables)


def test_a_policy_has_not_moved_from_itself_and_another_has(policy, found):
    here = movement(policy, found, found, SMALL)
    assert set(here["heads"].values()) == set(here["amplified"].values()) == {1.0}
    seed_adapter(0)
    other = perturb(Policy(EMBEDDED, rank=4, alpha=8), scale=0.05)
    small = dataclasses.replace(SMALL, perturbation=None)
    there = analyze(other, countdown(), small)
    assert "perturbation" not in there.tables
    moved = movement(other, there, found, small)
    assert all(0 < value < 1 for value in moved["amplified"].values())


def test_responses_are_shown_with_the_marks_of_both_kinds(policy, found):
    for response in shown_responses(policy, found, SMALL):
        assert response.preplan.any()
        assert response.anchor.any()


def test_the_report_shows_the_tables_and_escapes_everything(policy, found):
    hostile = "<script>alert(1)</script>"
    moved = {
        hostile: {
            "heads": {"local": 0.5, "global": 0.25, "receivers": 1.0},
            "amplified": {"preplan": 0.5, "anchor": 0.75},
        }
    }
    page = report(policy, found, {"base": found.tables, hostile: found.tables}, moved, SMALL, title=hostile)
    assert hostile not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    observed = found.tables["coupling"]["fai_after_waad"]["observed"]
    assert f"<td>{observed:.3f}</td>" in page
    for words in ("As the policy learns", "Table 1", "Table 2", "Table 10", "Table 20", "0.25", "data:image/png"):
        assert words in page
    assert len(page) < 3_000_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"responses": 1}, "responses=1: must be at least 2"),
        ({"temperature": -1.0}, "temperature=-1.0: must be at least 0"),
        ({"top_fraction": 0.0}, "top_fraction=0.0"),
        ({"offsets": []}, "offsets="),
        ({"head_fraction": 0.8}, "head_fraction=0.8"),
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
