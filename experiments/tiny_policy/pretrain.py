"""Pretrains the embedded policy on generated Countdown traces: `python experiments/tiny_policy/pretrain.py`.

Everything follows from --seed: the weights, the problems and the traces of step i. The result goes to --output as a
transformers model folder (safetensors, tokenizer), the loss of every 20th step to --log as CSV.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from traces import trace, vocabulary
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rhythm.tasks.countdown import Countdown

HERE = Path(__file__).parent
LARGEST = 150  # every number of a trace is one word: 0 to 150
TEMPLATE = "numbers : {numbers} target : {target} ."
# How often a difficulty is drawn, its problems, and how well its traces search.
DIFFICULTIES = (
    {"share": 0.75, "count": 3, "train_size": 5000, "skill": 0.20, "max_attempts": 3},
    {"share": 0.25, "count": 4, "train_size": 40_000, "skill": 0.25, "max_attempts": 2},
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    specials = ["<pad>", "<eos>", "<unk>"]
    words = {word: i for i, word in enumerate([*specials, *vocabulary(LARGEST)])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM._from_config(config, attn_implementation="sdpa", dtype=torch.float32)


class Traces:
    """Batches of prompts and traces; batch i depends on (seed, i) alone.

    Traces are drawn for POOL batches at a time and cut into batches of like length, in shuffled order.
    """

    POOL = 16

    def __init__(self, tokenizer: PreTrainedTokenizerFast, batch_size: int, seed: int):
        self.tokenizer, self.batch_size, self.seed = tokenizer, batch_size, seed
        self.problems = [
            Countdown(count=d["count"], number_range=(1, 15), target_range=(10, 100), largest=LARGEST).problems(
                "train", d["train_size"]
            )
            for d in DIFFICULTIES
        ]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields token ids and labels [batch, length], padded on the right; labels are -100 on prompts and padding."""
        for pool in itertools.count():
            draw = random.Random(f"{self.seed}/{pool}")
            rows = sorted((self.row(draw) for _ in range(self.POOL * self.batch_size)), key=lambda row: len(row[0]))
            starts = list(range(0, len(rows), self.batch_size))
            draw.shuffle(starts)
            for start in starts:
                yield self.collate(rows[start : start + self.batch_size])

    def row(self, draw: random.Random) -> tuple[list[int], int]:
        """Token ids of a prompt and its trace, and the length of the prompt."""
        which = draw.choices(range(len(DIFFICULTIES)), [d["share"] for d in DIFFICULTIES])[0]
        difficulty, problem = DIFFICULTIES[which], draw.choice(self.problems[which])
        numbers = draw.sample(problem["numbers"], len(problem["numbers"]))
        settings = {name: difficulty[name] for name in ("skill", "max_attempts")}
        response = trace(numbers, problem["target"], largest=LARGEST, draw=draw, **settings)
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


def optimizers(model: Qwen3ForCausalLM, lr: float, muon_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.01),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=HERE.parents[1] / "src/rhythm/assets/tiny_countdown")
    parser.add_argument("--log", type=Path, default=HERE / "loss.csv")
    parser.add_argument("--save-every", type=int, default=0, help="steps between snapshots <output>-<step>; 0 for none")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer).train()
    batches = iter(Traces(tokenizer, args.batch_size, args.seed))
    optims = optimizers(model, args.lr, args.muon_lr)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(
            optim, lambda step: min((step + 1) / args.warmup, 1.0, (args.steps - step) / (0.4 * args.steps))
        )
        for optim in optims
    ]
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(tokenizer)} words")
    started, losses, rows = time.time(), [], []
    for step in range(1, args.steps + 1):
        ids, labels = next(batches)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim, scheduler in zip(optims, schedulers, strict=True):
            optim.step()
            scheduler.step()
            optim.zero_grad()
        losses.append(loss.item())
        if step % 20 == 0:
            rows.append((step, sum(losses[-20:]) / 20))
            print(f"step {step:5d}  loss {rows[-1][1]:.4f}  {(time.time() - started) / step:.2f} s/step", flush=True)
        if args.save_every and step % args.save_every == 0:
            model.save_pretrained(f"{args.output}-{step}")
            tokenizer.save_pretrained(f"{args.output}-{step}")
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    with args.log.open("w", newline="") as file:
        csv.writer(file).writerows([("step", "loss"), *rows])


if __name__ == "__main__":
    main()
