"""What a user reads where the command line is at fault: one line that says what to change."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import eval as eval_script
import train as train_script
from rhythm import cli, keys, machine, runs, settings
from rhythm.faults import Interrupted
from rhythm.tasks.countdown import Countdown

ROOT = Path(__file__).parents[1]
SMALL = [
    "iterations=1",
    "prompts_per_iteration=2",
    "group_size=2",
    "max_completion_tokens=4",
    "callbacks.evaluation.problems=2",
]


def in_a_process(script, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop(cli.TRACEBACK, None)
    command = [sys.executable, ROOT / script, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr


@pytest.fixture
def here(monkeypatch, capsys, tmp_path):
    """Calls an entry point in this process, in an empty folder; gives its exit code and what it wrote to stderr."""
    monkeypatch.chdir(tmp_path)
    for name in (runs.SHARED, "HYDRA_FULL_ERROR", cli.TRACEBACK):
        monkeypatch.setenv(name, "")  # so that what the call sets is taken back
        monkeypatch.delenv(name)

    def call(script, *arguments):
        name, run = {
            "train.py": ("train", train_script.train),
            "eval.py": ("eval", eval_script.evaluate_adapter),
        }[script]
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main(run, name)
        return stop.value.code, capsys.readouterr().err

    return call


def assert_one_line(outcome, *words):
    code, err = outcome
    assert code not in (0, None)
    assert "Traceback" not in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert len(err) < 320, err
    for word in words:
        assert word in err, err


def local(folder, *arguments):
    return ["policy=local", f"policy.path={folder}", *SMALL, *arguments]


# ---- in a process of its own: nothing but the one line reaches stderr


def test_a_misspelt_key_names_the_key_that_was_meant():
    assert_one_line(in_a_process("train.py", "learning_rat=1e-3"), "'learning_rat'", "did you mean 'learning_rate'?")


def test_credit_that_reads_attention_names_the_callback_it_needs(tiny_folder, tmp_path):
    outcome = in_a_process("train.py", *local(tiny_folder, "credit=anchor", f"output_dir={tmp_path / 'run'}"))
    assert_one_line(outcome, "anchor credit reads `fai`", "callbacks=attention")


# ---- the same path in this process


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["algorithm.objectve.beta=1"], ["'algorithm.objectve.beta'", "did you mean 'algorithm.objective.beta'?"]),
        (["groupsize=4"], ["'groupsize'", "did you mean 'group_size'?"]),
        (["temperature=0.9"], ["'temperature'", "did you mean 'algorithm.temperature'?"]),
        (["experiment=anchor", "credit.top_fracton=0.5"], ["did you mean 'credit.top_fraction'?"]),
        (["credit.top_fracton=0.5"], ["'credit.top_fracton'", "`+credit.top_fracton=` adds one"]),
        (["credit.top_fraction=0.5"], ["'credit.top_fraction' here; credit=anchor, ", " have it"]),  # uniform has none
        (["qwertz=1"], ["'qwertz'", "`+qwertz=` adds one"]),
    ],
)
def test_other_misspelt_keys(here, overrides, words):
    assert_one_line(here("train.py", *overrides), *words)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("credit=ancor", ["credit=ancor", "did you mean credit=anchor?", "coupled", "entropy", "random", "uniform"]),
        ("experiment=ancor", ["experiment=ancor", "did you mean experiment=anchor?", "paper/v1"]),
        ("task=sudoku", ["task=sudoku: there is no such option; There are", "countdown_three"]),
        ("polcy=local", ["polcy"]),
        ("policy=local", ["policy.path"]),
        ("credit.top_fraction", ["credit.top_fraction"]),
    ],
)
def test_what_cannot_be_composed(here, override, words):
    assert_one_line(here("train.py", override), *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_gpu_that_is_not_there(here, tmp_path):
    outcome = here("train.py", "trainer=gpu", *SMALL, f"output_dir={tmp_path / 'run'}")
    assert_one_line(outcome, "trainer.accelerator=gpu", "no CUDA device", "trainer=cpu")
    assert not (tmp_path / "run").exists()


def test_strategies_that_cut_the_adapter_into_shards_are_refused():
    for strategy in ("fsdp", "deepspeed_stage_3"):
        with pytest.raises(ValueError, match=f"trainer.strategy={strategy}: .* use trainer=fsdp"):
            machine.check_accelerator(OmegaConf.create({"accelerator": "cpu", "strategy": strategy}))


@pytest.mark.parametrize("precision", ["bf16-true", "16-mixed", 16])
def test_precisions_that_round_the_adapter_or_scale_its_gradients_are_refused(precision):
    with pytest.raises(ValueError, match=f"^trainer.precision={precision}: .* use 32-true or bf16-mixed, and policy"):
        machine.check_accelerator(OmegaConf.create({"accelerator": "cpu", "precision": precision}))
    for sound in machine.PRECISIONS:
        machine.check_accelerator(OmegaConf.create({"accelerator": "cpu", "precision": sound}))


@pytest.mark.parametrize(
    ("setting", "mend"),
    [
        ("policy.full=true", "trainer=ddp"),
        ("policy.quantization=4bit", "trainer=ddp"),
        ("policy.fold=true", "fold=null"),
    ],
)
def test_what_does_not_go_into_shards_is_refused(setting, mend, here, tmp_path):
    outcome = here("train.py", "trainer=fsdp", "trainer.accelerator=cpu", setting, f"output_dir={tmp_path / 'run'}")
    assert_one_line(outcome, f"trainer=fsdp: {setting}", mend)
    assert not (tmp_path / "run").exists()


def test_credit_settings_that_make_no_sense(here, tiny_folder):
    outcome = here("train.py", *local(tiny_folder, "credit=random", "credit.top_fraction=1.5"))
    assert_one_line(outcome, "top_fraction", "1.5")


def test_a_setting_that_a_strategy_does_not_have(here, tiny_folder):
    assert_one_line(here("train.py", *local(tiny_folder, "credit=random", "+credit.colour=red")), "colour")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+algorithm.optimizer.colour=red", ["algorithm.optimizer: ", "colour"]),
        ("learning_rate=-1", ["algorithm.optimizer: ", "learning rate"]),
        ("algorithm.scheduler.name=bold", ["algorithm.scheduler: ", "bold", "cosine"]),
    ],
)
def test_what_optimizer_and_schedule_refuse(here, tiny_folder, tmp_path, override, words):
    outcome = here("train.py", *local(tiny_folder, override, f"output_dir={tmp_path / 'run'}"))
    assert_one_line(outcome, *words)


def test_a_server_that_is_not_there_is_told_before_anything_is_begun(here, tiny_folder, tmp_path):
    sampler = ["sampler=vllm", "sampler.url=http://127.0.0.1:9", "sampler.patience=0.05"]
    outcome = here("train.py", *local(tiny_folder, *sampler, f"output_dir={tmp_path / 'run'}"))
    assert_one_line(outcome, "sampler.url=http://127.0.0.1:9: no answer", "Connection refused", "experiments/vllm")
    assert not (tmp_path / "run").exists()


def test_a_policy_that_is_not_there(here, tmp_path):
    outcome = here("train.py", "policy=local", f"policy.path={tmp_path / 'nowhere'}")
    assert_one_line(outcome, f"policy.path={tmp_path / 'nowhere'}: there is no such folder")
    assert_one_line(here("train.py", "policy.path=embedded:huge"), "no such embedded policy")


def test_a_broken_line_of_a_tasks_data(here, tiny_folder, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"question": "1+1?", "answer": "#### 2"}\n{"question": "2+2?"}\n')
    (tmp_path / "test.jsonl").write_text('{"question": "3+3?", "answer": "#### 6"}\n')
    files = [f"task.{role}.files={tmp_path / role}.jsonl" for role in ("train", "test")]
    outcome = here("train.py", *local(tiny_folder, "task=gsm8k", *files))
    assert_one_line(outcome, f"{tmp_path}/train.jsonl, line 2: there is no column answer; there are question")


def test_an_adapter_that_is_not_there(here, tiny_folder, tmp_path):
    outcome = here("train.py", *local(tiny_folder, f"policy.adapter={tmp_path / 'nowhere'}"))
    assert_one_line(outcome, "policy.adapter=", "no adapter_config.json")


def test_the_last_checkpoint_of_no_run(here):
    assert_one_line(here("train.py", "ckpt_path=last"), "ckpt_path=last needs output_dir=")


@pytest.mark.parametrize("arguments", [["ckpt_path=gone.ckpt"], ["ckpt_path=last", "output_dir=gone"], ["ckpt_path=."]])
def test_a_checkpoint_that_is_not_there(here, tmp_path, arguments):
    assert_one_line(here("train.py", *arguments), arguments[0], "there is no")
    assert list(tmp_path.iterdir()) == []  # and no folder was made for it


def test_evaluating_an_adapter_that_is_not_there(here):
    assert_one_line(here("eval.py", "ckpt_path=gone"), "ckpt_path=gone: no adapter")


def test_a_folder_that_holds_a_run_is_not_written_to(here, tiny_folder, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("seed: 7\n")
    again = local(tiny_folder, "output_dir=run")
    assert_one_line(here("train.py", *again), "output_dir=run is not empty", "name another folder")
    (tmp_path / "run" / runs.LAST).touch()
    assert_one_line(here("train.py", *again), "output_dir=run holds a run", "ckpt_path=last")
    assert (tmp_path / "run" / "config.yaml").read_text() == "seed: 7\n"


def test_a_start_that_failed_does_not_block_its_folder(here, tiny_folder):
    folder = ["output_dir=run", "credit=anchor"]
    assert_one_line(here("train.py", *local(tiny_folder, *folder)), "callbacks=attention")
    assert not Path("run").exists()
    assert_one_line(here("train.py", *local(tiny_folder, *folder)), "callbacks=attention")


def test_a_start_that_would_train_on_wrong_rewards_is_refused(here, tiny_folder, monkeypatch):
    monkeypatch.setattr(Countdown, "reward", lambda task, problem, completion: 1.0)
    outcome = here("train.py", *local(tiny_folder, "doctor=true"))
    assert_one_line(outcome, "Countdown gives 'my answer is (2 + 3) * 4' a reward of 1", "mend its verifier")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("updates_per_iteration=500", "updates_per_iteration=500: an iteration has 4 completions"),
        ("iterations=0", "iterations=0: must be at least 1"),
        ("callbacks.export.push_to_hub=me/x", "callbacks.export.push_to_hub=me/x"),
        ("callbacks.evaluation.problems=0", "callbacks.evaluation.problems=0: must be at least 1"),
        ("output_dir=run", "output_dir=run is not empty"),
        ("output_dir=run/notes.txt", "output_dir=run/notes.txt: there is a file of that name; name a folder"),
    ],
)
def test_the_doctor_refuses_what_the_run_would_be_refused_for(
    here, tiny_folder, tmp_path, monkeypatch, override, message
):
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    assert_one_line(here("train.py", *local(tiny_folder, override)), message)
    assert_one_line(here("train.py", *local(tiny_folder, "doctor=true", override)), message)


def test_memory_that_gives_out_anywhere_is_one_line(here, tiny_folder, monkeypatch):
    monkeypatch.setattr(Countdown, "prompt", lambda task, problem: torch.empty(10**15))
    outcome = here("train.py", *local(tiny_folder, "output_dir=run"))
    assert_one_line(outcome, "out of memory; lower micro_batch_size, group_size or max_completion_tokens")


def test_more_prompts_than_problems(here, tiny_folder):
    outcome = here("train.py", *local(tiny_folder, "task.train_size=3", "prompts_per_iteration=4"))
    assert_one_line(outcome, "prompts_per_iteration=4: the task has only 3 problems")


def test_more_problems_than_there_are(here, tiny_folder):
    outcome = here("train.py", *local(tiny_folder, "task.count=2", "task.train_size=700"))
    assert_one_line(outcome, "task.train_size=700: only", "task.number_range")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("group_size=many", "group_size=many: takes a whole number, like 8"),
        ("group_size=2.5", "group_size=2.5: takes a whole number, like 8"),
        ("iterations=true", "iterations=True: takes a whole number, like"),
        ("seed=null", "seed=null: takes a whole number, like 0"),
        ("eval_every=null", "eval_every=null: takes a whole number, like"),
        ("max_prompt_tokens=abc", "max_prompt_tokens=abc: takes a whole number, like 512"),
        ("output_dir=2026", "output_dir=2026: takes a word, like logs/mine"),
        ("ckpt_path=5", "ckpt_path=5: takes a word, like last"),
        ("ckpt_path=[a,b]", "ckpt_path=['a', 'b']: takes a word, like last"),
        ("credit.top_fraction=2", "credit.top_fraction=2"),
        ("credit.top_fraction=null", "credit.top_fraction=null: takes a number, like 0.4"),
        ("policy.rank=null", "policy.rank=null: takes a whole number, like 16"),
        ("signals.window=null", "signals.window=null: takes a whole number, like 10"),
        ("callbacks.evaluation.every=null", "callbacks.evaluation.every=null: takes a whole number, like"),
        ("task.train_size=null", "task.train_size=null: takes a whole number, like"),
        ("signals.window=0", "signals.window=0: the window of WAAD"),
        ("algorithm.objective.clip_low=-1", "error: algorithm.objective.clip_low=-1: must be at least 0"),
        ("credit.top_fraction=half", "credit.top_fraction=half: takes a number, like 0.4"),
        ("algorithm.mask_truncated=2", "algorithm.mask_truncated=2: takes true or false, like False"),
        ("signals.horizon=10", "signals.horizon=10: takes a list, like [10, 100]"),
        ("signals.layers=5", "signals.layers=5: takes a word, like middle"),
        ("policy.dtype=float23", "policy.dtype=float23: use float32"),
        ("seed=-1", "seed=-1: must be at least 0"),
        ("prompts_per_iteration=0", "prompts_per_iteration=0: must be at least 1"),
        ("updates_per_iteration=100", "updates_per_iteration=100: an iteration has 4 completions"),
        ("callbacks.evaluation.problems=0", "callbacks.evaluation.problems=0: must be at least 1"),
        ("signals.regroup_every=0", "signals.regroup_every=0: must be at least 1, or null"),
        ("signals.sink=half", "error: signals.sink='half': use one of keep, drop"),
    ],
)
def test_values_that_make_no_sense(here, tiny_folder, override, message):
    credit = [] if "evaluation" in override else ["experiment=anchor"]
    assert_one_line(here("train.py", *local(tiny_folder, *credit, "output_dir=run", override)), message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("samples=0", "samples=0: must be at least 1"),
        ("problems=0", "problems=0: must be at least 1"),
        ("device=cuda:7", "device=cuda:7: there is no such CUDA device here"),
        ("output=.", "output=.: there is a folder of that name; name a file"),
        ("output=7", "output=7: takes a word, like results"),
        ("problems=1.5", "problems=1.5: takes a whole number"),
        ("max_completion_tokens=0", "max_completion_tokens=0: must be at least 1"),
        ("micro_batch_size=0", "micro_batch_size=0: must be at least 1"),
        ("temperature=-0.1", "temperature=-0.1: must be at least 0"),
        ("seed=-1", "seed=-1: must be at least 0"),
        ("device=meta", "device=meta: use cpu, cuda or cuda:1"),
        ("device=mps", "device=mps: use cpu, cuda or cuda:1"),
    ],
)
def test_evaluations_that_make_no_sense(here, override, message):
    if torch.cuda.is_available() and "cuda" in override:
        pytest.skip("there is a CUDA device here")
    assert_one_line(here("eval.py", override), message)


def test_a_misspelt_key_of_a_sweep(here):
    assert_one_line(
        here("train.py", "-m", "experiment=uniform,anchor", "learning_rte=1"), "did you mean 'learning_rate'?"
    )


@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_a_sweep_of_distributed_runs_names_a_launcher(trainer, here, tmp_path):
    sweep = ["-m", "experiment=uniform,anchor", f"trainer={trainer}", f"hydra.sweep.dir={tmp_path}"]
    assert_one_line(here("train.py", *sweep), f"-m with trainer={trainer}:", "hydra/launcher=submitit_local")


def test_a_stopped_run_of_a_sweep_goes_on_by_its_own_command(monkeypatch, capsys, tmp_path):
    def stopped(cfg):
        raise Interrupted(signal.SIGTERM, Path("logs/one of them"))

    monkeypatch.setattr(
        sys, "argv", ["train.py", "-m", "experiment=anchor,uniform", "seed=3", f"hydra.sweep.dir={tmp_path}"]
    )
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        cli.main(stopped, "train")
    assert stop.value.code == 128 + signal.SIGTERM
    told = capsys.readouterr().out
    assert "go on: python train.py experiment=anchor seed=3 ckpt_path=last 'output_dir=logs/one of them'\n" in told
    assert "would have followed were not begun" in told


@pytest.mark.slow
def test_a_job_of_a_sweep_says_itself_how_it_goes_on_or_what_is_wrong(tiny_folder, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra `cluster`")
    runs_at, jobs = tmp_path / "runs", tmp_path / "sweep" / ".submitit"
    small = local(tiny_folder, "iterations=200", "checkpoint_every=1", "eval_every=1000", "inspect_every=1000")
    sweep = ["-m", "hydra/launcher=submitit_local", f"hydra.sweep.dir={tmp_path / 'sweep'}", "credit=uniform,anchor"]
    command = [sys.executable, "train.py", *sweep, *small, f"output_dir={runs_at}/${{credit._target_}}"]
    parent = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    saved, deadline = runs_at / "rhythm.credit.UniformCredit" / runs.LAST, time.monotonic() + 200
    while not saved.is_file() and time.monotonic() < deadline:
        time.sleep(0.2)
    children = subprocess.run(["pgrep", "-f", f"submitit.core._submit {jobs}"], capture_output=True, text=True).stdout
    for child in children.split():
        os.kill(int(child), signal.SIGTERM)
    _, err = parent.communicate(timeout=200)
    logs = "".join(path.read_text() for path in jobs.rglob("*_log.*"))
    assert parent.returncode == 1
    assert err.startswith("error: a run of the sweep left no result: Job ")
    assert err.count("\n") == 1
    assert "saved; to go on: python train.py credit=uniform policy=local" in logs
    assert f"ckpt_path=last output_dir={saved.parent.parent}\n" in logs
    assert "error: anchor credit reads `fai`" in logs
    assert "Traceback" not in logs


def test_two_runs_do_not_write_to_one_folder(run):
    held = FileLock(run / runs.LOCK)  # as another process would hold it
    runs._claims.clear()
    with held, pytest.raises(ValueError, match="another run is writing there"):
        runs.open_run(config(ckpt_path=str(run)), None)
    assert runs.open_run(config(ckpt_path=str(run)), None) == run / runs.LAST


def test_the_whole_trace_is_there_for_the_asking(here, monkeypatch):
    monkeypatch.setenv(cli.TRACEBACK, "1")
    monkeypatch.setattr(sys, "argv", ["train.py", "ckpt_path=last"])
    with pytest.raises(ValueError, match="needs output_dir"):
        cli.main(train_script.train, "train")


# ---- run folders


def config(**changes):
    values = {"seed": 0, "iterations": 5, "eval_every": 1, "ckpt_path": None, "output_dir": None, "task": {"count": 3}}
    values |= {"prompts_per_iteration": 2, "group_size": 4, "updates_per_iteration": 2}
    return OmegaConf.create({**values, "trainer": {"devices": 1}} | changes)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run that stopped after iteration 3."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(runs.SHARED, "")
    monkeypatch.delenv(runs.SHARED)
    folder = tmp_path / "run"
    assert runs.open_run(config(output_dir=str(folder)), None) is None
    (folder / runs.LAST).parent.mkdir()
    torch.save({"iteration": 3, "state_dict": {}}, folder / runs.LAST)
    return folder


def test_a_run_has_a_folder_of_its_own(run, tmp_path):
    first, second = config(seed=4), config(seed=4)
    runs.open_run(first, "anchor")
    runs.open_run(second, "anchor")
    assert first.output_dir != second.output_dir
    for each in (first, second):
        folder = Path(each.output_dir)
        assert folder.parent == Path("logs/anchor")
        assert "-4" in folder.name
        assert OmegaConf.load(folder / "config.yaml").seed == 4
        assert each.first_iteration == 1


@pytest.mark.parametrize("name", ["run", "run/checkpoints/last.ckpt"])
def test_a_run_is_resumed_where_it_stopped_in_its_own_folder(run, name):
    cfg = config(ckpt_path=name)
    assert runs.open_run(cfg, "anchor").resolve() == (run / runs.LAST).resolve()
    assert Path(cfg.output_dir).resolve() == run
    assert cfg.first_iteration == 4


@pytest.mark.parametrize("damage", ["empty", "half", "text", "list"])
def test_a_file_that_is_no_whole_checkpoint_is_refused(run, damage):
    path = run / runs.LAST
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "text": b"hello", "list": b""}[damage])
    if damage == "list":
        torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"last.ckpt is (damaged, or )?no checkpoint"):
        runs.open_run(config(ckpt_path=str(run)), None)


def test_last_is_the_last_checkpoint_of_the_folder(run):
    assert runs.open_run(config(ckpt_path="last", output_dir=str(run)), None) == run / runs.LAST


def test_what_may_change_when_a_run_is_resumed(run):
    longer = config(ckpt_path=str(run), iterations=9, eval_every=3, trainer={"devices": 2})
    assert runs.open_run(longer, None) == run / runs.LAST


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed 0 then and 1 now"),
        ({"task": {"count": 4}}, "task.count 3 then and 4 now"),
        ({"task": {"count": 3, "largest": 9}}, "task.largest absent then and 9 now"),
    ],
)
def test_a_run_is_not_resumed_under_other_settings(run, changes, message):
    with pytest.raises(ValueError, match=f"was started with other settings: {message}"):
        runs.open_run(config(ckpt_path=str(run), **changes), None)
    assert OmegaConf.load(run / "config.yaml").seed == 0


def test_a_key_that_is_newer_than_a_run_had_its_default_there(run):
    target = {"_target_": "rhythm.policy.Policy", "path": "embedded:tiny_countdown"}
    OmegaConf.save(config(policy=target), run / "config.yaml")
    for same in ({"compile": False}, {"stop_strings": [], "adapter": None}, {}):
        assert runs.open_run(config(ckpt_path=str(run), policy=target | same), None) == run / runs.LAST
    for key, value in {"rank": 8, "stop_strings": ["."]}.items():
        with pytest.raises(ValueError, match=f"policy.{key} absent then and "):
            runs.open_run(config(ckpt_path=str(run), policy=target | {key: value}), None)
    other = target | {"_target_": "rhythm.credit.AnchorCredit", "compile": False}  # has no such default
    with pytest.raises(ValueError, match=r"policy._target_ 'rhythm.policy.Policy' then .*policy.compile absent then"):
        runs.open_run(config(ckpt_path=str(run), policy=other), None)


@pytest.mark.parametrize(("devices", "share"), [(1, None), (4, None), (8, 1), (16, 0)])
def test_every_device_needs_a_completion_for_each_update(devices, share):
    cfg = config(trainer={"devices": devices})  # 8 completions, 2 updates
    if share is None:
        runs.check_counts(cfg)
        return
    message = f"^updates_per_iteration=2: an iteration has {share} completions on each of {devices} devices$"
    with pytest.raises(ValueError, match=message):
        runs.check_counts(cfg)


def test_a_run_is_not_resumed_in_another_folder(run, tmp_path):
    with pytest.raises(ValueError, match="is resumed in its own folder"):
        runs.open_run(config(ckpt_path=str(run), output_dir=str(tmp_path / "other")), None)


def test_an_adapter_is_found_by_its_folder_its_run_or_a_checkpoint(run):
    assert runs.find_adapter(None) is None
    assert runs.find_adapter(str(run)) == run / runs.LAST
    assert runs.find_adapter(str(run / runs.LAST)) == run / runs.LAST
    (run / "adapter").mkdir()
    (run / "adapter" / "adapter_config.json").write_text("{}")
    (run / "metrics.json").write_text('{"iterations": 2}')  # the run ended there, was extended, and stopped
    assert runs.find_adapter(str(run)) == run / runs.LAST
    (run / "metrics.json").write_text('{"iterations": 3}')
    assert runs.find_adapter(str(run)) == runs.find_adapter(str(run / "adapter")) == run / "adapter"
    (run / "adapter" / "adapter_config.json").rename(run / "adapter" / "config.json")  # of a whole model
    assert runs.find_adapter(str(run)) == runs.find_adapter(str(run / "adapter")) == run / "adapter"
    assert settings.run_folder(run / "adapter") == settings.run_folder(run / runs.LAST) == run


def test_an_adapter_is_not_evaluated_on_another_task(run):
    settings.check_same_subject(config(seed=9), run / runs.LAST)
    with pytest.raises(ValueError, match=r"trained under other settings than these; add task.count=3$"):
        settings.check_same_subject(config(task={"count": 4}), run / runs.LAST)
    with pytest.raises(ValueError, match=r"than these; add '~task.template'$"):
        settings.check_same_subject(config(task={"count": 3, "template": "another"}), run / runs.LAST)


def test_an_adapter_is_evaluated_on_other_problems_of_its_task(run):
    task = {"template": "{problem}", "train": {"path": "a", "columns": {"problem": "q"}}, "test": {"path": "b"}}
    OmegaConf.save(config(task=task), run / "config.yaml")
    settings.check_same_subject(
        config(task=task | {"train": {"path": "c"}, "test": {"path": "d", "name": "x"}}), run / runs.LAST
    )
    with pytest.raises(ValueError, match=r"than these; add 'task.template=\"\{problem\}\"'$"):
        settings.check_same_subject(config(task=task | {"template": "{problem}!"}), run / runs.LAST)


def test_the_choices_of_a_run_are_what_to_add_where_none_was_made(run):
    command = "python train.py experiment=anchor task=gsm8k task.count=3 policy.rank=8 seed=3"
    task, choices = {"count": 3, "seconds": 2.0}, {"task": "gsm8k", "policy": "qwen3_4b"}
    saved = config(task=task, max_completion_tokens=9, command=command, choices=choices)
    OmegaConf.save(saved, run / "config.yaml")
    now = config(task={"count": 4}, max_completion_tokens=8)
    with pytest.raises(ValueError, match=r"add task=gsm8k max_completion_tokens=9 task.count=3$"):
        settings.check_same_subject(now, run / runs.LAST)
    now = config(task={"count": 4}, max_completion_tokens=8)
    with pytest.raises(ValueError, match=r"these; add max_completion_tokens=9 task.count=3 \+task.seconds=2.0$"):
        settings.check_same_subject(now, run / runs.LAST, ["task=gsm8k"])
    now = config(task=task, max_completion_tokens=8)  # on other problems of the same kind, which were chosen
    with pytest.raises(ValueError, match=r"these; add max_completion_tokens=9$"):
        settings.check_same_subject(now, run / runs.LAST, ["task=aime24"])
    OmegaConf.save(config(task=task, max_completion_tokens=9), run / "config.yaml")  # of before choices were kept
    with pytest.raises(ValueError, match=r"these; add task.count=3$"):
        settings.check_same_subject(config(task=task | {"count": 4}, max_completion_tokens=9), run / runs.LAST)


def test_a_policy_is_not_evaluated_on_prompts_of_another_form(run):
    OmegaConf.save(config(policy={"path": "base", "chat_template": True}), run / "config.yaml")
    with pytest.raises(ValueError, match=r"than these; add policy.chat_template=true$"):
        settings.check_same_subject(config(policy={"path": "base", "chat_template": False}), run / "adapter")


def test_a_checkpoint_is_not_evaluated_at_another_scale(run):
    """Its tensors fit a policy of any alpha."""
    policy = {"path": "base", "alpha": 32, "adapter": None}
    OmegaConf.save(config(policy=policy), run / "config.yaml")
    settings.check_same_subject(config(policy=policy), run / runs.LAST)
    for changes, mend in (({"alpha": 8}, "policy.alpha=32"), ({"adapter": "warm"}, "policy.adapter=null")):
        other = config(policy=policy | changes)
        with pytest.raises(ValueError, match=f"than these; add {mend}$"):
            settings.check_same_subject(other, run / runs.LAST)
        settings.check_same_subject(other, run / "adapter")  # PEFT's own folder knows


@pytest.mark.parametrize(
    "value",
    ["plain/x.y", "<answer>([^<]*)</answer>", "{n}, it's \"x\"\nnew", "a\\b", 'a\\"b', "ends\\", "", "null", "5",
     " x", "a,b", 1, 0, 2.5, True, None, ["a b", 1, None], []],
)  # fmt: skip
def test_what_one_is_told_to_add_means_the_same_when_it_is_pasted(value):
    typed = subprocess.run(
        ["bash", "-c", f"printf %s {keys.override('k', value)}"], capture_output=True, text=True, check=True
    )
    read = OverridesParser.create().parse_override(typed.stdout).value()
    assert "\n" not in keys.override("k", value)
    assert OmegaConf.to_container(OmegaConf.create([read])) == [value]


def test_a_group_may_be_a_list_of_options():
    known = keys.known_keys("train", ["logger=[tensorboard,csv]"])
    assert {"logger.tensorboard.save_dir", "logger.csv.save_dir"} <= set(known)


def test_nested_keys_are_dotted():
    assert keys.flatten({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a": {"b": 1, "c": {}}, "a.b": 1, "a.c": {}, "d": [2]}
