"""The entry points as a user calls them: train, stop, resume, evaluate."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from peft import PeftModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from transformers import AutoModelForCausalLM, AutoTokenizer

from rhythm import runs
from rhythm.settings import check_same_run
from tests.test_configs import composed

ROOT = Path(__file__).parents[1]
SHORT = ["task._target_=tests.training.EasyCountdown", "max_completion_tokens=40"]  # rewards without a trace's end
SMOKE = ["experiment=coupled", "debug=smoke", "checkpoint_every=1", "eval_every=3", *SHORT]
SMOKE += [f"callbacks.inspection.{name}" for name in ("every=6", "fresh=0", "fixed=0", "page=false")]
LOOKS = [f"callbacks.inspection.{name}" for name in ("fresh=1", "fixed=1", "page=true")]
SCALARS = {
    "reward", "reward_std", "frac_reward_zero_std", "entropy", "loss", "grad_norm", "learning_rate",
    "clip_ratio/low_mean", "clip_ratio/high_mean", "completions/mean_length", "completions/clipped_ratio",
    "credit/mean", "credit/amplified", "credit/uninformed", "signals/waad", "signals/fai",
    "time/iteration", "time/sample", "time/reward", "time/score", "time/signals", "time/update",
    "eval/pass@1", "eval/pass@8", "eval/kl", "eval/parsed", "eval/truncated", "eval/pass@1_well_formed",
}  # fmt: skip


def call(script, *arguments):
    """What a script that succeeds prints, in a process of its own as a user starts it."""
    command = [sys.executable, script, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def scalars(folder):
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of six iterations that nobody stopped, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, call("train.py", *SMOKE, *LOOKS, "iterations=6", f"output_dir={folder}")


def test_a_run_leaves_everything_that_is_promised(finished):
    folder, out = finished
    assert {"config.yaml", "metrics.json", "adapter", "checkpoints"} <= {path.name for path in folder.iterdir()}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["first"]["iteration"] == 0
    assert metrics["last"]["iteration"] == metrics["iterations"] == 6
    assert metrics["last"]["problems"] == 4
    for key in ("eval/pass@1", "eval/pass@8"):
        low, high = metrics["last"]["intervals"][key]
        assert low <= metrics["last"]["metrics"][key] <= high
    for words in ("before", "after 6 iterations", "pass@1", "pass@8", "tensorboard --logdir", str(folder)):
        assert words in out
    command = f"python train.py {' '.join([*SMOKE, *LOOKS])} iterations=6"
    assert f"\n{command}\n" in (folder / "adapter" / "README.md").read_text()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["choices"] == {"task": "countdown_three", "policy": "tiny_countdown"}  # eval.py names them
    logged = scalars(folder)
    assert logged.keys() >= SCALARS
    assert [step for step, _ in logged["reward"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in logged["eval/pass@1"]] == [0, 3, 6]
    assert logged["eval/kl"][0][1] == 0
    assert max(value for _, value in logged["grad_norm"]) > 0.01  # some iterations may have had nothing to learn
    stages = sum(logged[f"time/{stage}"][0][1] for stage in ("sample", "reward", "score", "signals", "update"))
    assert 0.8 * logged["time/iteration"][0][1] < stages <= logged["time/iteration"][0][1]
    events = EventAccumulator(str(folder)).Reload()
    assert "completions/text_summary" in events.Tags()["tensors"]
    assert {"credit/weights", "signals/fai", "signals/waad", "advantages"} <= set(events.Tags()["histograms"])
    figures = {f"{kind}_1/{figure}" for kind in ("fresh", "fixed") for figure in ("tokens", "curves", "maps")}
    assert set(events.Tags()["images"]) == figures | {"heads/distance"}
    assert [image.step for image in events.Images("fixed_1/tokens")] == [1, 6]
    pages = sorted(path.name for path in (folder / "inspect").iterdir())
    assert pages == ["iteration_000001.html", "iteration_000006.html"]


def test_the_table_of_hyperparameters_has_the_knobs_and_the_final_pass(finished):
    folder, _ = finished
    knobs = yaml.safe_load((folder / "hparams.yaml").read_text())
    assert knobs["learning_rate"] == 2e-3
    assert knobs["credit._target_"] == "rhythm.credit.CoupledCredit"
    events = EventAccumulator(str(folder)).Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    started = HParamsPluginData.FromString(content).session_start_info.hparams
    assert started["credit.top_fraction"].number_value == 0.4
    final = json.loads((folder / "metrics.json").read_text())["last"]["metrics"]["eval/pass@1"]
    assert [(e.step, e.value) for e in events.Scalars("final/pass@1")] == [(6, pytest.approx(final))]


def test_a_checkpoint_holds_the_adapter_and_no_base_weight_in_plain_containers(finished):
    folder, _ = finished
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["iteration"] == 6
    assert checkpoint["state_dict"]
    assert all("lora_" in name for name in checkpoint["state_dict"])
    assert not list(folder.glob("**/*.tmp"))


def test_the_adapter_loads_by_peft_alone(finished):
    folder, _ = finished
    base = AutoModelForCausalLM.from_pretrained(ROOT / "src/rhythm/assets/tiny_countdown")
    model = PeftModel.from_pretrained(base, folder / "adapter")
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    loaded = {name.replace(".default.", "."): p for name, p in model.named_parameters() if "lora_" in name}
    assert equal({name: p.data for name, p in loaded.items()}, dict(state))


def wait_for(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def killed_and_resumed(nursery, folder, output, kills, seed):
    """Runs to the end over a number of SIGKILLs; each leaves a whole last checkpoint, or none yet.

    Every other one comes at a random moment of a process, the rest at a random moment after its first checkpoint.
    """
    draw, last = random.Random(seed), folder / runs.LAST
    moments = []

    def written():
        return last.stat().st_mtime_ns if last.is_file() else None

    while True:
        if not last.is_file():
            shutil.rmtree(folder, ignore_errors=True)  # a run that left no checkpoint is begun again
        elif runs.read_checkpoint(last)["iteration"] == 6:
            last.with_name("previous.ckpt").replace(last)  # too late to resume, and too early to end
        before, resumed = written(), ["ckpt_path=last"] if last.is_file() else []
        pid = nursery.start(output, "train.py", *SMOKE, "iterations=6", f"output_dir={folder}", *resumed)
        with suppress(ProcessLookupError):  # it has ended by itself
            if len(moments) < kills:
                while len(moments) % 2 == 0 and written() == before:
                    os.kill(pid, 0)
                    time.sleep(0.01)
                time.sleep(draw.uniform(0, 1.5 if len(moments) % 2 == 0 else 5.0))
                os.kill(pid, signal.SIGKILL)
        status = nursery.status()
        assert status in (0, -signal.SIGKILL), output.read_text()
        if status:
            moments.append(runs.read_checkpoint(last)["iteration"] if last.is_file() else 0)
        elif len(moments) == kills:
            return moments


def test_a_run_stopped_by_a_signal_and_resumed_equals_one_never_stopped(finished, nursery, tmp_path):
    folder, output = tmp_path / "run", tmp_path / "output"
    pid = nursery.start(output, "train.py", *SMOKE, "iterations=6", f"output_dir={folder}")
    last = folder / runs.LAST
    wait_for(last.is_file)
    os.kill(pid, signal.SIGTERM)
    assert nursery.status() == 128 + signal.SIGTERM, output.read_text()
    out = output.read_text()
    assert "SIGTERM" in out
    assert "Traceback" not in out
    assert f"ckpt_path=last output_dir={folder}" in out
    assert 1 <= runs.read_checkpoint(last)["iteration"] < 6
    nursery.run(output, "train.py", *SMOKE, "iterations=6", f"output_dir={folder}", "ckpt_path=last")
    assert_same_run(finished[0], folder)


def test_a_second_signal_stops_at_once(nursery, tmp_path):
    folder, output = tmp_path / "run", tmp_path / "output"
    pid = nursery.start(output, "train.py", *SMOKE, "iterations=50", f"output_dir={folder}")
    wait_for(lambda: (folder / runs.LAST).is_file())
    before = runs.read_checkpoint(folder / runs.LAST)["iteration"]
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: "SIGTERM: finishing this iteration" in output.read_text())
    os.kill(pid, signal.SIGTERM)
    assert nursery.status() == -signal.SIGTERM  # by the signal itself: nothing was finished, and nothing saved
    assert "saved; to go on" not in output.read_text()
    assert runs.read_checkpoint(folder / runs.LAST)["iteration"] in (before, before + 1)


def test_a_finished_run_with_iterations_raised_equals_a_longer_one(finished, nursery, tmp_path):
    folder, output = tmp_path / "run", tmp_path / "output"
    nursery.run(output, "train.py", *SMOKE, "iterations=3", f"output_dir={folder}")
    nursery.run(output, "train.py", *SMOKE, "iterations=6", f"output_dir={folder}", "ckpt_path=last")
    assert_same_run(finished[0], folder)
    assert yaml.safe_load((folder / "hparams.yaml").read_text())["iterations"] == 6


def test_a_run_killed_twice_and_resumed_equals_one_never_stopped(finished, nursery, tmp_path):
    moments = killed_and_resumed(nursery, tmp_path / "run", tmp_path / "output", kills=2, seed=0)
    assert len(moments) == 2
    assert moments[0] > 0
    assert_same_run(finished[0], tmp_path / "run")


@pytest.mark.slow
def test_a_run_killed_ten_times_and_resumed_equals_one_never_stopped(finished, nursery, tmp_path):
    moments = killed_and_resumed(nursery, tmp_path / "run", tmp_path / "output", kills=10, seed=1)
    assert len(moments) == 10
    assert len(set(moments)) > 2
    assert_same_run(finished[0], tmp_path / "run")


def assert_same_run(one, other):
    a, b = (torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (one, other))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "iteration"):
        assert equal(a[key], b[key]), key
    apart = ("time/", "final/")  # seconds, and a value for each time that the run was at its end
    curves = [{tag: v for tag, v in scalars(folder).items() if not tag.startswith(apart)} for folder in (one, other)]
    assert curves[0] == curves[1]
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (one, other)]
    assert metrics[0]["first"] == metrics[1]["first"]
    assert metrics[0]["last"] == metrics[1]["last"]


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("policy.path=elsewhere", "policy.path 'embedded:tiny_countdown' then and 'elsewhere' now"),
        ("policy.rank=8", "policy.rank 16 then and 8 now"),
        ("policy.targets=[q_proj]", "policy.targets 'all-linear' then and ['q_proj'] now"),
        ("credit=entropy", "credit._target_ 'rhythm.credit.CoupledCredit' then and 'rhythm.credit.EntropyCredit' now"),
        ("credit.top_fraction=0.3", "credit.top_fraction 0.4 then and 0.3 now"),
        ("trainer.precision=bf16-mixed", "trainer.precision '32-true' then and 'bf16-mixed' now"),
    ],
)
def test_a_run_is_not_resumed_as_another_one(finished, override, difference):
    cfg = composed(*SMOKE, "iterations=9", f"output_dir={finished[0]}", "ckpt_path=last", override)
    with pytest.raises(ValueError, match=re.escape(f"was started with other settings: {difference}")):
        runs.open_run(cfg, None)


@pytest.mark.parametrize(
    ("scheduler", "free"),
    [
        ({"_target_": "transformers.get_scheduler", "name": "constant_with_warmup"}, True),
        (None, True),
        ({"_target_": "transformers.get_scheduler", "name": "cosine"}, False),
        ({"_target_": "transformers.get_cosine_schedule_with_warmup"}, False),
    ],
)
def test_iterations_are_raised_where_no_earlier_learning_rate_depends_on_them(scheduler, free, tmp_path):
    cfg = composed(*SMOKE, "iterations=6")
    cfg.algorithm.scheduler = scheduler
    OmegaConf.save(cfg, tmp_path / "config.yaml", resolve=True)
    cfg.iterations = 9
    with nullcontext() if free else pytest.raises(ValueError, match="other settings: iterations 6 then and 9 now"):
        check_same_run(cfg, tmp_path / "config.yaml")


def test_a_checkpoint_is_not_evaluated_on_other_base_weights(finished, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(ROOT / "src/rhythm/assets/tiny_countdown")
    base.lm_head.weight.data.mul_(1.01)
    base.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(ROOT / "src/rhythm/assets/tiny_countdown").save_pretrained(tmp_path)
    cfg = composed(*SMOKE)
    cfg.policy.path = str(tmp_path)
    with pytest.raises(ValueError, match=f"^policy.path={tmp_path}: the checkpoint belongs to other base weights"):
        runs.load_policy(cfg.policy, finished[0] / runs.LAST)


def refusal(nursery, output, *command):
    """The one line that a script prints instead of running."""
    nursery.start(output, *command)
    assert nursery.status() == 1
    (line,) = output.read_text().strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_a_finished_run_is_not_resumed_without_more_iterations(finished, nursery, tmp_path):
    resumed = ["iterations=6", f"output_dir={finished[0]}", "ckpt_path=last"]
    assert "error: iterations=6: " in refusal(nursery, tmp_path / "output", "train.py", *SMOKE, *resumed)


def test_eval_measures_an_adapter_again_and_refuses_another_task(finished, nursery, tmp_path):
    folder, output = finished[0], tmp_path / "output"
    out = nursery.run(output, "eval.py", f"ckpt_path={folder}", "problems=4", *SHORT)
    measured = json.loads((folder / "eval.json").read_text())
    assert measured["problems"] == 4
    assert measured["metrics"] == pytest.approx(json.loads((folder / "metrics.json").read_text())["last"]["metrics"])
    assert "eval/pass@1" in out
    assert "task.count=3" in refusal(nursery, output, "eval.py", f"ckpt_path={folder}", "task=countdown_four")


def test_the_doctor_looks_at_a_run_says_what_it_found_and_leaves_nothing(nursery, tmp_path):
    out = nursery.run(tmp_path / "output", "train.py", "experiment=anchor", "doctor=true", f"output_dir={tmp_path}/run")
    rows = [line.split()[1] for line in out.splitlines() if line.startswith("ok ")]
    assert rows == ["adapter", "reference", "update", "verifier", "layers", "disk", "tags"]
    assert "a GRPO loss near zero is normal" in out
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_a_multirun_trains_every_combination_in_its_own_folder(nursery, tmp_path):
    arguments = ["-m", "experiment=uniform,anchor", "debug=smoke", "seed=1,2", "iterations=1", "logger=csv"]
    arguments += ["~callbacks.inspection", *SHORT]
    arguments += [f"output_dir={tmp_path}/${{hydra:job.num}}", f"hydra.sweep.dir={tmp_path}/sweep"]
    nursery.run(tmp_path / "output", "train.py", *arguments)
    assert len(list(tmp_path.glob("*/csv/from_iteration_1/metrics.csv"))) == 4
    runs = sorted(json.loads(path.read_text())["iterations"] for path in tmp_path.glob("*/metrics.json"))
    assert runs == [1, 1, 1, 1]
