"""Evaluates a trained adapter, or the base: `python eval.py ckpt_path=<run folder, adapter folder or checkpoint>`."""

from __future__ import annotations

import json
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rhythm import cli


def evaluate_adapter(cfg: DictConfig) -> float:
    """Held-out evaluation, written to eval.json. Returns pass@1."""
    from hydra.utils import instantiate

    from rhythm.evaluation.evaluate import evaluate
    from rhythm.machine import check_device
    from rhythm.runs import find_adapter, load_policy
    from rhythm.settings import check_same_subject

    counts = ("problems", "samples", "prompts_at_once", "max_completion_tokens", "micro_batch_size")
    for name, least in {**dict.fromkeys(counts, 1), "seed": 0, "temperature": 0}.items():
        if cfg[name] < least:
            raise ValueError(f"{name}={cfg[name]}: must be at least {least}")
    check_device(cfg.device)
    adapter = find_adapter(cfg.ckpt_path)
    check_same_subject(cfg, adapter, HydraConfig.get().overrides.task)
    policy = load_policy(cfg.policy, adapter).to(cfg.device)
    task = instantiate(cfg.task, _convert_="all")
    output = Path(cfg.output or ((adapter.parent if adapter else Path()) / "eval.json"))
    if output.is_dir():
        raise ValueError(f"output={output}: there is a folder of that name; name a file")
    output.parent.mkdir(parents=True, exist_ok=True)
    measured = evaluate(
        policy,
        task,
        task.held_out(cfg.problems),
        samples=cfg.samples,
        max_completion_tokens=cfg.max_completion_tokens,
        temperature=cfg.temperature,
        micro_batch_size=cfg.micro_batch_size,
        prompts_at_once=cfg.prompts_at_once,
        seed=cfg.seed,
    )
    summary = {"policy": policy.path, "adapter": str(adapter) if adapter else None}
    summary |= {name: cfg[name] for name in ("seed", "temperature", "max_completion_tokens", "prompts_at_once")}
    summary |= {"task": OmegaConf.to_container(cfg.task, resolve=True), **measured.summary()}
    output.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    for tag, value in summary["metrics"].items():
        interval = summary["intervals"].get(tag)
        print(f"{tag:26} {value:.4f}" + (f"  [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else ""))
    samples = f"{summary['samples']} samples each (pass@1 over them is avg@{summary['samples']})"
    print(f"{summary['problems']} problems, {samples}; written to {output}")
    return summary["metrics"]["eval/pass@1"]


if __name__ == "__main__":
    cli.main(evaluate_adapter, "eval")
