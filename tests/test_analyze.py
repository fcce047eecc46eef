"""analyze.py as a user calls it."""

import json
import sys
import weakref

import pytest
from omegaconf import OmegaConf
from transformers import BloomConfig, BloomForCausalLM

import analyze as script
import train
from rhythm import cli, runs
from tests.policies import WORDS, perturb, word_tokenizer

SMALL = ["responses=3", "max_completion_tokens=60", "signals.window=5", "resamples=100", "perturbation.positions=1"]


TINY = ["max_completion_tokens=30", "signals.window=4", "short=leave_out", "perturbation.tail=4"]  # ... random policy


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Runs analyze.py in this process and an empty folder; gives its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    for name in (runs.SHARED, "HYDRA_FULL_ERROR", cli.TRACEBACK):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def run(*arguments, main=script.analyze_policies, name="analyze"):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main(main, name)
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


def written(folder):
    return json.loads((folder / "analysis.json").read_text(), parse_constant=pytest.fail)


def test_another_policy_is_analyzed_by_what_its_options_say(call, tiny_folder, tmp_path):
    """A random model of three layers, each key that the paper leaves open off its default, Table 1 and all."""
    options = [
        "signals.row=predictor",
        "signals.sink=drop",
        "signals.min_rows=5",
        "perturbation.end_is_alternative=true",
    ]
    policy = ["policy=local", f"policy.path={tiny_folder}", "device=cpu"]
    code, out = call(*SMALL, *TINY, *policy, *options)
    assert code == 0, out
    found = written(tmp_path / "analysis")["analyses"]["base"]
    assert set(found["heads"]["distance"]) == {"0", "1", "2"}
    table = found["perturbation"]
    assert table["trials"] >= 3 * table["top_below_bottom"]["problems"] > 0
    assert {"top", "bottom", "at_equal_place"} <= set(table)
    report = (tmp_path / "analysis" / "report.html").read_text()
    assert "row: predictor, sink: drop, min_rows: 5" in report
    assert "What hangs on a token? (Table 1)" in report
    assert f">{table['top']['overlap']:.3f}" in report
    code, out = call(*SMALL, *TINY, *policy, "output=plain")
    assert code == 0, out
    plain = written(tmp_path / "plain")["analyses"]["base"]
    assert plain["responses"] == found["responses"]  # the same responses ...
    assert all(mine > 0 for mine in plain["heads"]["sink"]["0"])
    for kind in ("heads", "coupling", "alignment"):  # ... otherwise read
        assert plain[kind] != found[kind]


@pytest.fixture
def learned(call, tiny_folder, tmp_path):
    """A run of two iterations with a checkpoint of each, rewarded by the parity of lengths, and how it was called."""
    subject = ["policy=local", f"policy.path={tiny_folder}", "task._target_=tests.training.EasyCountdown"]
    sizes = ["iterations=2", "prompts_per_iteration=2", "group_size=4", TINY[0], "learning_rate=0.1"]
    sizes += ["callbacks.evaluation.problems=2", "callbacks.checkpoints.keep_every=1", "~callbacks.startup"]
    code, out = call(*subject, *sizes, "output_dir=run", main=train.train, name="train")
    assert code == 0, out
    return tmp_path / "run", subject


def test_a_run_is_analyzed_from_its_base_to_its_end_one_policy_at_a_time(call, learned, monkeypatch):
    alive, load = [], runs.load_policy

    def loaded(config, adapter):
        assert [policy() for policy in alive if policy() is not None] == []  # memory for one
        policy = load(config, adapter)
        alive.append(weakref.ref(policy))
        return policy

    monkeypatch.setattr(runs, "load_policy", loaded)
    run, subject = learned
    code, out = call(*SMALL, *TINY, *subject, f"ckpt_path={run / 'checkpoints'}")
    assert code == 0, out
    assert len(alive) == 3
    found = written(run / "analysis")
    assert list(found["analyses"]) == ["base", "iteration 1", "iteration 2"]
    assert list(found["movement"]) == ["iteration 1", "iteration 2"]
    entropies = [tables["coupling"]["entropy_at_waad_peaks"]["expected"] for tables in found["analyses"].values()]
    assert len(set(entropies)) == 3  # each is another policy
    assert "As the policy learns" in (run / "analysis" / "report.html").read_text()


def test_a_run_folder_without_an_adapter(call, tmp_path):
    (tmp_path / "run").mkdir()
    OmegaConf.save(OmegaConf.create({"seed": 0}), tmp_path / "run" / "config.yaml")
    code, err = call(*SMALL, f"ckpt_path={tmp_path / 'run'}")
    assert code == 1
    assert err.startswith(f"error: ckpt_path={tmp_path / 'run'}: no adapter, run folder or checkpoint is there")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ckpt_path=gone"], "ckpt_path=gone: no adapter"),
        (["signals.window=500"], "fewer than window=500"),
        (["layers=outer"], "layers='outer': use one of"),
        (["device=cuda"], "device=cuda: there is no such CUDA device here"),
        (["perturbation.tail=0"], "perturbation.tail=0: must be a whole number, 1 or more"),
        (["ckpt_path=[]"], "ckpt_path=[]: name a run"),
        (["ckpt_path=[null,null]"], "ckpt_path: null is named twice"),
        (["offsets=[a]"], "offsets=['a']: takes whole numbers of tokens"),
        (["offsets=null"], "offsets=null: takes a list, like [-1, 0, 1]"),
        (["layers=[a,1]"], "layers=['a', 1]: the model has layers 0 to 5"),
        (["prominence=nan"], "prominence=nan: must be a number"),
        (["temperature=null"], "temperature=null: takes a number"),
        (["perturbation=3"], "perturbation=3: takes settings like"),
        (["ckpt_path=[5]"], "ckpt_path=[5]: takes a run"),
        (["device=gpu"], "device=gpu: use cpu, cuda or cuda:1"),
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


def test_an_output_that_is_a_file(call, tmp_path):
    (tmp_path / "taken").touch()
    code, err = call(*SMALL, "output=taken")
    assert (code, err) == (1, "error: output=taken: there is a file of that name; name a folder\n")


def test_a_model_that_cannot_be_read(call, tmp_path):
    sizes = {"vocab_size": len(WORDS), "hidden_size": 32, "n_layer": 2, "n_head": 4}
    BloomForCausalLM(BloomConfig(**sizes)).save_pretrained(tmp_path / "bloom")
    word_tokenizer(WORDS).save_pretrained(tmp_path / "bloom")
    code, err = call(*SMALL, "policy=local", "policy.path=bloom", "policy.attn_implementation=eager")
    assert code == 1
    assert err.count("\n") == 1
    assert "its attention bypasses transformers' attention interface" in err
