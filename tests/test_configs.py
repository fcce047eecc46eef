"""Every config composes, and every experiment is a short diff whose first lines say what it is."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

CONFIGS = Path(__file__).parents[1] / "configs"
EXPERIMENTS = sorted(
    str(p.relative_to(CONFIGS / "experiment").with_suffix("")) for p in CONFIGS.glob("experiment/**/*.yaml")
)


def composed(*overrides, config="train"):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(config, overrides=[*(["output_dir=out"] if config == "train" else []), *overrides])


def options(group):
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def targets(node):
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        for value in node.values():
            yield from targets(value)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_is_a_diff_with_its_command_and_composes(experiment):
    lines = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"  # Hydra reads it on the first line only
    assert lines[1].startswith(f"# python train.py experiment={experiment}")
    assert len([line for line in lines if line.strip() and not line.startswith("#")]) <= 15
    cfg = composed(f"experiment={experiment}", "debug=smoke")
    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert cfg.iterations == 2
    credit = instantiate(cfg.credit)
    provides = {"waad", "waad_drop", "fai"} if "attention_signals" in cfg.callbacks else set()
    assert credit.requires <= provides | {"entropy"}
    for target in targets(resolved):
        get_object(target)


@pytest.mark.parametrize(
    "group", ["policy", "task", "credit", "signals", "algorithm", "sampler", "trainer", "callbacks", "logger"]
)
def test_every_option_of_every_group_composes(group):
    for option in options(group):
        cfg = composed(f"{group}={option}", *(["policy.path=somewhere"] if group == "policy" else []))
        assert list(targets(OmegaConf.to_container(cfg, resolve=True)))


def test_experiment_names_are_credit_names():
    assert {"uniform", "random", "entropy", "preplan", "anchor", "coupled"} <= set(options("credit")) & set(EXPERIMENTS)
    for name in ("uniform", "random", "entropy", "preplan", "anchor", "coupled"):
        assert instantiate(composed(f"experiment={name}").credit).name == name


def test_the_papers_first_version_is_its_horizon_and_its_sign():
    first, second = composed("experiment=paper/v1"), composed("experiment=coupled")
    assert list(first.callbacks.attention_signals.horizon) == [10, 50]
    assert first.algorithm.sign == "positive"
    assert list(second.callbacks.attention_signals.horizon) == [10, 100]
    assert second.algorithm.sign == "both"
    assert first.credit == second.credit


@pytest.mark.parametrize("control", ["shuffled", "mean_matched"])
def test_a_control_is_of_any_strategy(control):
    assert instantiate(composed(f"credit={control}").credit).of.name == "coupled"
    credit = instantiate(composed(f"credit={control}", "credit@credit.of=anchor", "credit.of.top_fraction=0.2").credit)
    assert (credit.name, credit.of.name, credit.of.top_fraction) == (control, "anchor", 0.2)


def test_the_defaults_are_the_papers():
    cfg = composed("experiment=coupled")
    assert (cfg.credit.top_fraction, cfg.credit.amplification, cfg.credit.lookback) == (0.4, 1.5, 3)
    assert (cfg.signals.window, cfg.signals.layers, cfg.signals.head_fraction) == (10, "middle", 0.3)
    assert (cfg.algorithm.objective.beta, cfg.algorithm.temperature) == (0.0, 1.0)
    assert cfg.algorithm.objective.aggregation == "sequence_mean"
    assert composed("task=countdown").task.count == 4
    assert composed("task=countdown").task.train_size == 20_000


def test_eval_measures_what_training_measured():
    training, evaluation = composed(), composed(config="eval")
    assert evaluation.task == training.task
    assert evaluation.policy == training.policy
    for key in ("max_completion_tokens", "micro_batch_size"):
        assert evaluation[key] == training[key]
    assert evaluation.prompts_at_once == training.callbacks.evaluation.prompts_at_once  # or other samples are drawn


def test_another_logger_is_added_by_its_class(tmp_path):
    cfg = composed("+logger.second._target_=lightning.pytorch.loggers.CSVLogger", f"+logger.second.save_dir={tmp_path}")
    loggers = [type(instantiate(logger)).__name__ for name, logger in cfg.logger.items() if name == "second"]
    assert set(cfg.logger) == {"tensorboard", "second"}
    assert loggers == ["CSVLogger"]


def test_a_sweep_is_an_array_of_jobs_that_save_before_their_end():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra `cluster`")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", overrides=["hydra/launcher=slurm"], return_hydra_config=True)
    launcher = cfg.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert launcher.additional_parameters.signal == "TERM@300"
    assert (launcher.gpus_per_node, launcher.max_num_timeout) == (1, 0)
