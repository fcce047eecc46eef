"""Files that travel: checkpoints, adapters, configs and models are read as data, and nothing in them is run."""

import json
import os
import pickle
import shutil

import pytest
import torch
from omegaconf import OmegaConf

from rhythm import runs, settings
from rhythm.policy import Policy
from tests.policies import save_tiny_policy

POLICY = {"_target_": "rhythm.policy.Policy", "path": "embedded:tiny_countdown"}


class Attack:
    """Pickles to a call that makes a file."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.fixture
def hit(tmp_path):
    return tmp_path / "HIT"


@pytest.mark.parametrize(
    ("call", "name"),
    [(os.system, "posix.system"), (open, "io.open"), (eval, "eval"), (os.mkdir, "posix.mkdir")],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_checkpoint_that_would_run_something_is_refused_by_its_name(tmp_path, hit, call, name, form):
    argument = {os.system: f"touch {hit}", eval: f"open({str(hit)!r}, 'w')"}.get(call, str(hit))
    attack = Attack(call, *([argument, "w"] if call is open else [argument]))
    path = tmp_path / "last.ckpt"
    content = {"iteration": 3, "state_dict": {"lora": attack}}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=rf"last.ckpt would run `{name}` on loading: refused"):
        runs.read_checkpoint(path)
    with pytest.raises(ValueError, match="refused"):
        runs.load_policy(OmegaConf.create(POLICY), path)
    assert not hit.exists()
    pickle.loads(path.read_bytes()) if form == "pickle" else torch.load(path, weights_only=False)  # it would have
    assert hit.exists()


def test_an_adapter_in_a_pickle_is_not_loaded(tiny_folder, tmp_path, hit):
    Policy(str(tiny_folder), rank=4).save_adapter(tmp_path / "adapter")
    Policy(str(tiny_folder), adapter=str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    torch.save({"lora": Attack(os.system, f"touch {hit}")}, tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"policy.adapter=.*: no adapter_model.safetensors there, and pickles"):
        Policy(str(tiny_folder), adapter=str(tmp_path / "adapter"))
    assert not hit.exists()


def test_the_config_beside_a_checkpoint_is_data(tmp_path, hit, monkeypatch):
    monkeypatch.setenv("SECRET", "xyzzy")
    (tmp_path / "checkpoints").mkdir()
    torch.save({"iteration": 1, "state_dict": {}}, tmp_path / runs.LAST)
    now = {"seed": 0, "iterations": 5, "policy": {"path": "here"}, "task": {"count": 3}, "max_completion_tokens": 9}
    now |= {"prompts_per_iteration": 2, "group_size": 2, "updates_per_iteration": 1, "trainer": {"devices": 1}}
    attack = {"_target_": "os.system", "command": f"touch {hit}"}
    text = OmegaConf.to_yaml(OmegaConf.create(now | {"task": attack, "seed": "${oc.env:SECRET}"}))
    (tmp_path / runs.CONFIG).write_text(text + "extra: !!python/object/apply:os.mkdir ['" + str(hit) + "']\n")
    cfg = OmegaConf.create(now | {"ckpt_path": str(tmp_path), "output_dir": None})
    with pytest.raises(Exception, match="could not determine a constructor"):  # of YAML, by its safe loader
        runs.open_run(cfg.copy(), None)
    (tmp_path / runs.CONFIG).write_text(text)
    with pytest.raises(ValueError, match=r"was started with other settings: .*oc.env:SECRET") as refused:
        runs.open_run(cfg.copy(), None)
    assert "xyzzy" not in str(refused.value)
    with pytest.raises(ValueError, match=r"add \+task\._target_=os\.system"):
        settings.check_same_subject(cfg, tmp_path / runs.LAST)
    assert not hit.exists()


@pytest.fixture
def own_code(tmp_path, hit):
    """A model folder whose architecture is a Python file of its own."""
    folder = save_tiny_policy(tmp_path / "own")
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.json"))
    config |= {"model_type": "own", "architectures": ["OwnModel"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        f"from transformers import Qwen3Config, Qwen3ForCausalLM\nopen({str(hit)!r}, 'w')\n"
        "class OwnConfig(Qwen3Config):\n    model_type = 'own'\n"
        "class OwnModel(Qwen3ForCausalLM):\n    config_class = OwnConfig\n"
    )
    return folder


def test_code_that_comes_with_a_model_runs_only_where_a_flag_says_so(own_code, hit, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    line = f"policy.path={own_code}: this model comes with code of its own; read it, then set "
    with pytest.raises(ValueError, match=f"^{line}policy.trust_remote_code=true to run it$"):
        Policy(str(own_code))
    assert not hit.exists()
    Policy(str(own_code), rank=4, trust_remote_code=True)
    assert hit.exists()


# ---- damage


def test_a_damaged_checkpoint_names_the_newest_whole_one(tmp_path):
    for age, (name, iteration) in enumerate([("last", 9), ("previous", 6), ("best", 3)]):
        torch.save({"iteration": iteration, "state_dict": {}}, tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (1000 - age, 1000 - age))
    last, previous, best = (tmp_path / f"{name}.ckpt" for name in ("last", "previous", "best"))
    for path in (last, previous):
        os.truncate(path, path.stat().st_size // 2)
        other, iteration = (previous, 6) if path == last else (best, 3)
        message = f"{last} is damaged, or no checkpoint; of iteration {iteration} is ckpt_path={other}"
        with pytest.raises(ValueError, match=f"^{message}$"):
            runs.read_checkpoint(last)
    shutil.copy(last, best)
    with pytest.raises(ValueError, match=f"^{last} is damaged, or no checkpoint$"):
        runs.read_checkpoint(last)
