"""One update on completions that are sampled beforehand, split by whole groups: `torchrun split.py FOLDER URL`.

Every process samples the same rollout and takes its own groups, so that two processes do together what one does alone,
by DDP and with frozen weights in shards. Then two iterations on completions of their own, two updates on completions
that a server at URL samples for each, one of a sampler without a server, and one whose checkpoint finds the disk full.
"""

from __future__ import annotations

import gc
import math
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer

from rhythm.callbacks.attention_signals import AttentionSignals
from rhythm.callbacks.checkpoints import Checkpoints
from rhythm.callbacks.evaluation import HeldOutEvaluation
from rhythm.callbacks.observer import RolloutObserver
from rhythm.credit import AnchorCredit
from rhythm.data import PromptData
from rhythm.metrics import Mean
from rhythm.module import GRPOModule
from rhythm.objective import Objective
from rhythm.policy import Policy
from rhythm.rollout import sample
from rhythm.samplers import Sampler, VLLMSampler
from rhythm.scoring import score
from rhythm.seeding import seed_adapter
from rhythm.strategy import ShardedStrategy
from rhythm.tasks.countdown import Countdown
from rhythm.types import Prompts, Rollout
from tests.training import EasyCountdown

PROMPTS, GROUP = 6, 6
STRATEGIES = {"ddp": lambda: "ddp", "fsdp": ShardedStrategy}
CASES = ("sequence_mean", "token_mean", "idle")  # in the last the second process has nothing to learn
SPLITS = [("ddp", case) for case in CASES] + [("fsdp", "token_mean"), ("fsdp", "idle")]


class SplitModule(GRPOModule):
    """Takes its share of one rollout of all prompts, whatever the process."""

    case = "sequence_mean"

    def sample(self, prompts: Prompts) -> Rollout:
        if self.case in ("own", "served"):
            return super().sample(prompts)
        everything = list(self.task.train_problems())[:PROMPTS]
        encoded = self.policy.tokenizer([self.task.prompt(p) for p in everything], return_tensors="pt", padding=True)
        with self.policy.whole():
            whole = sample(
                self.policy.model,
                self.policy.tokenizer,
                Prompts(encoded["input_ids"], encoded["attention_mask"].bool(), everything),
                group_size=self.group_size,
                max_completion_tokens=self.max_completion_tokens,
                generator=torch.Generator().manual_seed(0),
            )
        rows = torch.arange(PROMPTS * GROUP)
        if self.case == "idle":
            for row in rows[len(rows) // 2 :].tolist():
                whole.completions[row] = ""
        return whole.take(rows.chunk(self.trainer.world_size)[self.global_rank])


class Witness(RolloutObserver):
    """Notes completions, and between stages the bytes of later tensors; looks at rollouts on the first rank alone."""

    def __init__(self):
        self.completions, self.bytes = [], []
        self.earlier = live_storages()  # kept, so that what earlier fits left behind is not freed while this one counts

    def scored(self, module, rollout):
        self.completions.append(rollout.completion_ids)
        self.bytes.append(self.live_bytes())
        return {}

    def learned(self, module, rollout):
        first = module.trainer.is_global_zero
        module.record(
            {
                "told/weighted": Mean(1.0, 1.0) if first else Mean(4.0, 2.0),
                "told/by_one": Mean(math.nan, 0.0) if first else Mean(4.0, 2.0),
                "told/by_none": Mean(2.0 * first, 0.0),
                "told/plain": 2.0 * first,
                "told/max": 2.0 * first,
            }
        )
        if first:
            score(module.policy.model, rollout, micro_batch_size=7, temperature=1.0)
            self.adapter = module.policy.adapter_state()
            score(module.policy.model, rollout, micro_batch_size=7, temperature=1.0)

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.bytes.append(self.live_bytes())

    def live_bytes(self) -> int:
        return sum(storage.nbytes() for key, storage in live_storages().items() if key not in self.earlier)


def live_storages() -> dict[int, torch.UntypedStorage]:
    """Every storage that a tensor in this process has, of DTensors the shard inside of them."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]
    return {storage._cdata: storage for storage in (x.untyped_storage() for x in tensors)}


def fit(
    devices: int,
    case: str,
    sampler: Sampler | None = None,
    *,
    iterations: int = 1,
    tokens: int = 150,
    callbacks: Sequence[Callback] = (),
    strategy: str = "ddp",
    **settings,
) -> dict:
    """One SGD step at rate 1, unclipped: the adapter moves by minus the gradient."""
    witness = Witness()
    seed_adapter(0)
    policy = Policy("embedded:tiny_countdown", rank=4, alpha=8, **settings)
    draw = torch.Generator().manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data.add_(0.03 * torch.randn(parameter.shape, generator=draw))
    before = {name: tensor.clone() for name, tensor in policy.adapter_state().items()}
    task = (EasyCountdown if case in ("own", "served") else Countdown)(
        count=3,
        number_range=(1, 15),
        train_size=64,
        template="numbers : {numbers} target : {target} .",
        answer_pattern=r"my answer is ([-+*/() 0-9]+)$",
    )
    reader = AttentionSignals()
    observers = [reader, *callbacks]
    if case == "own":  # of three batches of problems one process has two
        observers += [witness, HeldOutEvaluation(problems=3, samples=2, prompts_at_once=1)]
    module = SplitModule(
        policy,
        task,
        AnchorCredit(),
        Objective(aggregation="token_mean" if case == "token_mean" else "sequence_mean"),
        lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        sampler=sampler,
        iterations=iterations,
        group_size=GROUP,
        updates_per_iteration=1,
        max_completion_tokens=tokens,
        micro_batch_size=5,
        max_grad_norm=math.inf,
    )
    module.case = case
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=STRATEGIES[strategy]() if devices > 1 else "auto",
        max_epochs=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=observers,
    )
    data = PromptData(task, policy.tokenizer, prompts_per_iteration=PROMPTS, iterations=iterations, seed=0)
    trainer.fit(module, data)
    after = policy.adapter_state()
    return {
        "rank": trainer.global_rank,
        "moved": {name: after[name] - before[name] for name in before},
        "heads": vars(reader.heads),
        "distance": reader.sums.distance,
        "metrics": module.metrics,
        "completions": witness.completions,
        "bytes": witness.bytes,
        "frozen": sum(p.nbytes for p in policy.model.parameters() if not p.requires_grad),
    }


if __name__ == "__main__":
    for strategy, case in SPLITS:
        outcome = fit(int(os.environ["WORLD_SIZE"]), case, strategy=strategy)
        torch.save(outcome, Path(sys.argv[1]) / f"{strategy}-{case}-{outcome['rank']}.pt")
    for strategy in STRATEGIES:
        settings = {"iterations": 2, "tokens": 24, "fold": False}
        outcome = fit(int(os.environ["WORLD_SIZE"]), "own", strategy=strategy, **settings)
        torch.save(outcome, Path(sys.argv[1]) / f"{strategy}-own-{outcome['rank']}.pt")
    sampler = VLLMSampler(sys.argv[2], Path(sys.argv[1]) / "sampler")
    outcome = fit(int(os.environ["WORLD_SIZE"]), "served", sampler, iterations=2, tokens=12)
    torch.save(outcome, Path(sys.argv[1]) / f"served-{outcome['rank']}.pt")
    try:
        fit(int(os.environ["WORLD_SIZE"]), "served", VLLMSampler("http://127.0.0.1:1", sys.argv[1], patience=0.1))
    except (OSError, ValueError) as error:
        (Path(sys.argv[1]) / f"failed-{os.environ['RANK']}").write_text(str(error))
    if os.environ["RANK"] == "0":  # which alone writes
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    checkpoints = Checkpoints(str(Path(sys.argv[1]) / "checkpoints"))
    try:
        fit(int(os.environ["WORLD_SIZE"]), "sequence_mean", tokens=12, callbacks=[checkpoints])
    except (OSError, ValueError) as error:
        (Path(sys.argv[1]) / f"full-{os.environ['RANK']}").write_text(str(error))
