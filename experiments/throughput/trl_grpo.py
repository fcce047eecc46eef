"""TRL's side, run by run.py in TRL's own environment: GRPOTrainer on the problems that our run met, in their order.

Of our package it uses the verifier alone, which needs torch and datasets.
"""

from __future__ import annotations

from common import Log, read_spec, write_result
from datasets import Dataset
from peft import LoraConfig
from rewards import REWARDS
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Recorder(TrainerCallback):
    """Notes the end of each iteration, which is that of its last optimizer step."""

    def __init__(self, log: Log, updates: int):
        self.log = log
        self.updates = updates

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.updates == 0:
            self.log.ended()


def config(spec: dict) -> GRPOConfig:
    """The same iteration as ours: one generation for all of its completions, then `updates` optimizer steps."""
    accumulation = spec["prompts"] * spec["group"] // (spec["updates"] * spec["micro_batch"])
    return GRPOConfig(
        output_dir="out",
        seed=spec["seed"],
        max_steps=spec["updates"] * (spec["warmup"] + spec["timed"]),
        # the batch
        num_generations=spec["group"],
        per_device_train_batch_size=spec["micro_batch"],
        gradient_accumulation_steps=accumulation,
        steps_per_generation=accumulation * spec["updates"],
        num_iterations=1,
        shuffle_dataset=False,
        # sampling from the full softmax
        max_completion_length=spec["max_tokens"],
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        # the objective
        loss_type="grpo",
        beta=0.0,
        epsilon=0.2,
        scale_rewards="group",
        # the optimizer
        learning_rate=spec["learning_rate"],
        lr_scheduler_type="constant",
        adam_beta1=0.9,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        # numbers, and nothing that costs time beside the work
        model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
        bf16=False,
        use_cpu=spec["device"] == "cpu",
        gradient_checkpointing=False,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def main() -> None:
    spec = read_spec()
    log = Log()
    verifier = REWARDS[spec["reward"]](answer_pattern=spec["answer_pattern"])

    def reward(completions, completion_ids, numbers, target, **kwargs):
        problems = [{"numbers": n, "target": t} for n, t in zip(numbers, target, strict=True)]
        rewards = [verifier.reward(problem, text) for problem, text in zip(problems, completions, strict=True)]
        log.sampled([len(ids) for ids in completion_ids], rewards)
        return rewards

    trainer = GRPOTrainer(
        model=spec["policy"],
        reward_funcs=reward,
        args=config(spec),
        train_dataset=Dataset.from_list(spec["problems"]),
        processing_class=AutoTokenizer.from_pretrained(spec["policy"], padding_side="left"),
        callbacks=[Recorder(log, spec["updates"])],
        peft_config=LoraConfig(**spec["lora"], task_type="CAUSAL_LM"),
    )
    trainer.train()
    write_result({"row": log.row(spec, "trl")})


if __name__ == "__main__":
    main()
