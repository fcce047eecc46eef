"""Trains a LoRA policy by GRPO with credit: `python train.py experiment=anchor`."""

from __future__ import annotations

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from rhythm import cli


def train(cfg: DictConfig) -> float:
    """One run, or with `doctor` one short iteration of it that is looked at, or with `estimate` what it would need.

    Returns the last held-out pass@1, for sweepers that maximise something; NaN without evaluations.
    """
    if cfg.estimate:
        from rhythm.estimate import report

        print(report(cfg))
        return float("nan")
    if not cfg.doctor:
        return run(cfg)
    from rhythm.doctor import rehearsal

    with rehearsal(cfg) as small:
        return run(small)


def run(cfg: DictConfig) -> float:
    from hydra.utils import instantiate
    from lightning.pytorch.utilities import rank_zero_only

    from rhythm.callbacks.observer import check_signals
    from rhythm.data import PromptData
    from rhythm.machine import check_accelerator, check_launcher, check_shards
    from rhythm.runs import building, open_run
    from rhythm.seeding import seed_adapter
    from rhythm.settings import knobs

    hydra = HydraConfig.get()
    check_launcher(cfg, hydra)
    check_accelerator(cfg.trainer)
    check_shards(cfg)
    cfg.command = cli.command_line("train.py", hydra.overrides.task)
    cfg.choices = {group: hydra.runtime.choices[group] for group in ("task", "policy")}
    checkpoint = open_run(cfg, hydra.runtime.choices.get("experiment") or hydra.runtime.choices["credit"])
    with building(cfg, checkpoint):
        seed_adapter(cfg.seed)
        policy = instantiate(cfg.policy, _convert_="all")
        task = instantiate(cfg.task, _convert_="all")
        credit = instantiate(cfg.credit, _convert_="all")
        sampler = instantiate(cfg.sampler, _convert_="all")
        module = cli.build(cfg.algorithm, policy=policy, task=task, credit=credit, sampler=sampler)
        data = PromptData(
            task,
            policy.tokenizer,
            prompts_per_iteration=cfg.prompts_per_iteration,
            iterations=cfg.iterations,
            seed=cfg.seed,
            max_prompt_tokens=cfg.max_prompt_tokens,
            chat=policy.chat,
        )
        callbacks = [instantiate(callback, _convert_="all") for callback in cfg.callbacks.values()]
        check_signals(credit, callbacks)
        if not rank_zero_only.rank:
            sampler.prepare(policy)  # a server that is not there is told before anything is begun
        loggers = [instantiate(logger, _convert_="all") for logger in (cfg.get("logger") or {}).values()]
        for logger in loggers:
            logger.log_hyperparams(knobs(cfg))
        trainer = cli.build(cfg.trainer, callbacks=callbacks, logger=loggers)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return module.metrics.get("eval/pass@1", float("nan"))


if __name__ == "__main__":
    cli.main(train, "train")
