"""analyze.py as a user calls it."""

import json
import sys

import pytest
from transformers import BloomConfig, BloomForCausalLM

import analyze as script
from rhythm import cli
from tests.policies import WORDS, perturb, word_tokenizer

SMALL = ["responses=3", "max_completion_tokens=60", "signals.window=5", "resamples=100", "perturbation.positions=1"]


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Runs analyze.py in this process and an empty folder; gives its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    for name in ("HYDRA_FULL_ERROR", cli.TRACEBACK):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["analyze.py", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main(script.analyze_policies, "analyze")
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err
        return 0, capsys.readouterr().out

    return run


def test_the_base_and_an_adapter_are_analyzed_and_compared(call, tmp_path):
    from rhythm.policy import Policy
    from rhythm.seeding import seed_adapter

    seed_adapter(0)
    perturb(Policy("embedded:tiny_countdown"), scale=0.02).save_adapter(tmp_path / "adapter")
    code, out = call(*SMALL, f"ckpt_path=[null,{tmp_path / 'adapter'}]", "output=here", "perturbation=null")
    assert code == 0
    assert "written to here/analysis.json and here/report.html" in out
    written = json.loads((tmp_path / "here" / "analysis.json").read_text(), parse_constant=pytest.fail)
    assert list(written["analyses"]) == ["base", str(tmp_path / "adapter")]
    assert written["settings"]["signals"]["window"] == 5
    assert 0 < written["movement"][str(tmp_path / "adapter")]["amplified"]["anchor"] < 1
    assert "As the policy learns" in (tmp_path / "here" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ckpt_path=gone"], "ckpt_path=gone: no adapter"),
        (["signals.window=500"], "fewer than window=500"),
        (["layers=outer"], "layers='outer': use one of"),
        (["device=cuda"], "device=cuda: there is no CUDA device here"),
        (["perturbation.tail=0"], "perturbation.tail=0: must be a whole number, 1 or more"),
        (["ckpt_path=[]"], "ckpt_path=[]: name a run"),
        (["ckpt_path=[null,null]"], "ckpt_path: null is named twice"),
        (["offsets=[a]"], "offsets=['a']: takes whole numbers of tokens"),
        (["offsets=null"], "offsets=None: takes whole numbers of tokens"),
        (["layers=[a,1]"], "layers=['a', 1]: the model has layers 0 to 5"),
        (["prominence=nan"], "prominence=nan: must be a number"),
        (["temperature=null"], "temperature=None: must be a number"),
        (["perturbation=3"], "perturbation=3: takes settings like"),
        (["ckpt_path=[5]"], "ckpt_path=[5]: takes a run"),
        (["device=gpu"], "device=gpu: there is no such kind"),
        (["permute=flip"], "permute=flip: use one of shuffle, rotate"),
        (["signals.horizon=[0.5,3]"], "FAI takes whole numbers of tokens"),
        (["respones=3"], "did you mean 'responses'?"),
    ],
)
def test_what_cannot_be_analyzed(call, arguments, message):
    code, err = call(*SMALL, *arguments)
    assert code == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_an_adapter_that_does_not_fit(call, tiny_folder, tmp_path):
    from rhythm.policy import Policy

    Policy(str(tiny_folder), rank=2, alpha=4).save_adapter(tmp_path / "adapter")
    code, err = call(*SMALL, f"ckpt_path={tmp_path / 'adapter'}")
    assert code == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "does not fit this base" in err


def test_a_model_that_cannot_be_read(call, tmp_path):
    sizes = {"vocab_size": len(WORDS), "hidden_size": 32, "n_layer": 2, "n_head": 4}
    BloomForCausalLM(BloomConfig(**sizes)).save_pretrained(tmp_path / "bloom")
    word_tokenizer(WORDS).save_pretrained(tmp_path / "bloom")
    code, err = call(*SMALL, "policy=local", "policy.path=bloom", "policy.attn_implementation=eager")
    assert code == 1
    assert err.count("\n") == 1
    assert "its attention bypasses transformers' attention interface" in err
