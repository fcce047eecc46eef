"""Pretrains a policy on generated Countdown traces: `python experiments/tiny_policy/pretrain.py [RECIPE]`.

Everything follows from the recipe and its seed: the weights, the problems and the traces of step i. Writes a
transformers model folder (safetensors, tokenizer) and, beside the recipe or in --output, loss.csv with
the loss of every 20th step.
"""

from __future__ import annotations

import argparse
import csv
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader, Dataset
from traces import trace, vocabulary
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rhythm.tasks.countdown import Countdown

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TEMPLATE = "numbers : {numbers} target : {target} ."


def make_tokenizer(largest: int) -> PreTrainedTokenizerFast:
    specials = ["<pad>", "<eos>", "<unk>"]
    words = {word: i for i, word in enumerate([*specials, *vocabulary(largest)])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def make_model(shape: dict[str, int], tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        **shape,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM._from_config(config, attn_implementation="sdpa", dtype=torch.float32)


class Traces(Dataset):
    """Pools of prompts and traces; pool i depends on the recipe and i alone.

    The traces of a pool are drawn together and cut into batches of like length, in shuffled order.
    """

    BATCHES = 16  # of a pool

    def __init__(self, recipe: dict[str, Any], tokenizer: PreTrainedTokenizerFast):
        self.tokenizer, self.batch_size, self.seed = tokenizer, recipe["batch_size"], recipe["seed"]
        self.largest, self.difficulties = recipe["largest"], recipe["difficulties"]
        settings = {"number_range": recipe["number_range"], "target_range": (10, 100), "largest": self.largest}
        self.problems = [
            Countdown(count=each["count"], **settings).problems("train", each["train_size"])
            for each in self.difficulties
        ]
        self.pools = -(-recipe["steps"] // self.BATCHES)

    def __len__(self) -> int:
        return self.pools

    def __getitem__(self, pool: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of token ids and labels [batch, length], padded on the right; -100 on prompts and padding."""
        draw = random.Random(f"{self.seed}/{pool}")
        rows = sorted((self.row(draw) for _ in range(self.BATCHES * self.batch_size)), key=lambda row: len(row[0]))
        starts = list(range(0, len(rows), self.batch_size))
        draw.shuffle(starts)
        return [self.collate(rows[start : start + self.batch_size]) for start in starts]

    def row(self, draw: random.Random) -> tuple[list[int], int]:
        """Token ids of a prompt and its trace, and the length of the prompt."""
        which = draw.choices(range(len(self.difficulties)), [each["share"] for each in self.difficulties])[0]
        difficulty, problem = self.difficulties[which], draw.choice(self.problems[which])
        numbers = draw.sample(problem["numbers"], len(problem["numbers"]))
        settings = {name: difficulty[name] for name in ("skill", "max_attempts")}
        response = trace(numbers, problem["target"], largest=self.largest, draw=draw, **settings)
        prompt = TEMPLATE.format(numbers=" ".join(map(str, numbers)), target=problem["target"])
        head, tail = self.tokenizer.encode(prompt), self.tokenizer.encode(response)
        return head + tail + [self.tokenizer.eos_token_id], len(head)

    def collate(self, rows: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        labels = torch.full((len(rows), width), -100)
        for i, (row, prompt_length) in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            labels[i, prompt_length : len(row)] = ids[i, prompt_length : len(row)]
        return ids, labels


def batches(traces: Traces, workers: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for pool in DataLoader(traces, batch_size=None, num_workers=workers):  # in order, however many workers
        yield from pool


def optimizers(model: Qwen3ForCausalLM, lr: float, muon_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.01),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, nargs="?", default=HERE / "recipe.yaml")
    parser.add_argument("--device", default="cpu", help="on cuda products are in bfloat16")
    parser.add_argument("--workers", type=int, default=0, help="processes that write traces")
    parser.add_argument("--output", type=Path, help="instead of the recipe's; loss.csv goes there too")
    args = parser.parse_args()
    recipe = yaml.safe_load(args.recipe.read_text(encoding="utf-8"))
    output, steps = args.output or ROOT / recipe["output"], recipe["steps"]

    torch.manual_seed(recipe["seed"])
    tokenizer = make_tokenizer(recipe["largest"])
    model = make_model(recipe["model"], tokenizer).to(args.device).train()
    optims = optimizers(model, recipe["lr"], recipe["muon_lr"])
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(
            optim, lambda step: min((step + 1) / recipe["warmup"], 1.0, (steps - step) / (0.4 * steps))
        )
        for optim in optims
    ]
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(tokenizer)} words")
    started, losses, rows = time.time(), [], []
    for step, (ids, labels) in zip(range(1, steps + 1), batches(Traces(recipe, tokenizer), args.workers), strict=False):
        with torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
            loss = model(input_ids=ids.to(args.device), labels=labels.to(args.device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim, scheduler in zip(optims, schedulers, strict=True):
            optim.step()
            scheduler.step()
            optim.zero_grad()
        losses.append(loss.detach())
        if step % 20 == 0:
            rows.append((step, float(sum(losses[-20:])) / 20))
            print(f"step {step:5d}  loss {rows[-1][1]:.4f}  {(time.time() - started) / step:.2f} s/step", flush=True)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    with ((args.output or args.recipe.parent) / "loss.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("step", "loss"), *rows])


if __name__ == "__main__":
    main()
