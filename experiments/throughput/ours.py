"""Our side, run by run.py: train.py's own parts under `experiment=anchor`, without evaluation, logging and saving."""

from __future__ import annotations

from statistics import median

from common import Log, read_spec, write_result
from floor import flops, matmul_rate
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from rewards import REWARDS

from rhythm.allocator import keep_freed_memory
from rhythm.callbacks.observer import RolloutObserver
from rhythm.data import PromptData
from rhythm.keys import CONFIGS
from rhythm.module import GRPOModule
from rhythm.seeding import seed_adapter
from rhythm.types import Rollout

STAGES = ("sample", "reward", "score", "signals", "update")


class Recorder(RolloutObserver):
    """Notes what each iteration took, and which problems it met."""

    def __init__(self):
        self.measured = Log()
        self.stages: list[list[float]] = []
        self.flops: list[dict[str, float]] = []
        self.problems: list[dict] = []

    def learned(self, module: GRPOModule, rollout: Rollout) -> None:
        self.measured.sampled(rollout.completion_mask.sum(1).tolist(), rollout.rewards.tolist())
        self.stages.append([module.metrics[f"time/{stage}"] for stage in STAGES])
        self.problems += [
            dict(problem, prompt=module.task.prompt(problem)) for problem in rollout.problems[:: module.group_size]
        ]
        self.flops.append(flops(module.policy.model, rollout, module.group_size))
        self.measured.ended()


def composed(spec: dict) -> DictConfig:
    """train.yaml with anchor credit and the attention callback alone."""
    settings = {
        "policy": "local",
        "policy.path": f"'{spec['policy']}'",
        "task._target_": f"{REWARDS[spec['reward']].__module__}.{REWARDS[spec['reward']].__name__}",
        "experiment": "anchor",
        "trainer": "gpu" if spec["device"] == "cuda" else "cpu",
        "seed": spec["seed"],
        "iterations": spec["warmup"] + spec["timed"],
        "prompts_per_iteration": spec["prompts"],
        "group_size": spec["group"],
        "updates_per_iteration": spec["updates"],
        "max_completion_tokens": spec["max_tokens"],
        "micro_batch_size": spec["micro_batch"],
        "learning_rate": spec["learning_rate"],
        "algorithm.scheduler": "null",
        "policy.compile": spec.get("compile", False),
    }
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", overrides=[f"{key}={value}" for key, value in settings.items()])


def main() -> None:
    spec = read_spec()
    keep_freed_memory()  # as cli.main does
    cfg = composed(spec)
    seed_adapter(cfg.seed)
    policy = instantiate(cfg.policy, _convert_="all")
    task = instantiate(cfg.task, _convert_="all")
    credit = instantiate(cfg.credit, _convert_="all")
    module = instantiate(cfg.algorithm, _partial_=True, _convert_="all")(policy=policy, task=task, credit=credit)
    sizes = {"prompts_per_iteration": cfg.prompts_per_iteration, "iterations": cfg.iterations}
    data = PromptData(task, policy.tokenizer, seed=cfg.seed, **sizes)
    recorder = Recorder()
    trainer = instantiate(cfg.trainer, _partial_=True, _convert_="all")(
        callbacks=[instantiate(cfg.callbacks.attention_signals, _convert_="all"), recorder],
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, data)
    stages = zip(STAGES, zip(*recorder.stages[spec["warmup"] :], strict=True), strict=True)
    row = recorder.measured.row(spec, "lightning") | {
        f"time/{stage}": round(median(seconds), 4) for stage, seconds in stages
    }
    rate = matmul_rate(spec["device"])
    row |= {"gflops": round(rate / 1e9, 1)} | {
        f"floor/{stage}": round(median(each[stage] for each in recorder.flops[spec["warmup"] :]) / rate, 4)
        for stage in ("sample", "score", "update")
    }
    shared = {"problems": recorder.problems, "answer_pattern": cfg.task.answer_pattern}
    shared["lora"] = {"r": cfg.policy.rank, "lora_alpha": cfg.policy.alpha, "target_modules": cfg.policy.targets}
    write_result({"row": row, "shared": shared})


if __name__ == "__main__":
    main()
