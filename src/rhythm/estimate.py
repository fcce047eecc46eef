"""What a run will need, from shapes alone: memory by part and by phase, and time by GPU.

The model is built of tensors without data (torch's FakeTensorMode) and computes what a run computes: a decoding step
with a full cache, a scoring pass, an update with its backward pass. Every allocation is counted on the way, so that the
numbers follow the code. No weights are read; a config.json is enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from rhythm.allocations import Allocations, materialise
from rhythm.attention.blocks import block_size
from rhythm.attention.heads import resolve_layers
from rhythm.captured import is_plain
from rhythm.decoding import fast_decoding, make_cache
from rhythm.folding import FoldedLinear, folded, make_foldable
from rhythm.loading import find_dtype, find_source
from rhythm.losses import entropies, selected_logps
from rhythm.machine import devices_of_a_node, sharding
from rhythm.objective import Objective
from rhythm.rollout import draw
from rhythm.shards import decoder_layers

GIB = 2**30
NF4 = 0.516  # bytes a weight: 4 bits, and a quantized constant for each 64 (arXiv:2305.14314)
# Memory in GiB, dense bfloat16 and float32 TFLOP/s, memory bandwidth in TB/s: NVIDIA's data sheets.
GPUS = {
    "RTX 4090": (24, 165, 83, 1.01),
    "L40S": (45, 362, 92, 0.86),
    "A100": (80, 312, 19.5, 2.04),
    "H100": (80, 989, 67, 3.35),
    "H200": (141, 989, 67, 4.8),
}
# Assumed, not measured: shares of peak that large products and reads of whole matrices reach, and seconds a launch.
USED_FLOPS, USED_BANDWIDTH, LAUNCH = 0.4, 0.7, 6e-6
CAPTURED = 2e-6  # the same in a captured step; 1.5 and 1.9 on an H200, experiments/throughput
LINK = 5e10  # assumed bytes/s of each GPU to the others: 400 Gbit/s, as between nodes; within one it is more
CUDA = 1.0  # GiB, of the CUDA context and libraries


@dataclass(frozen=True)
class Workload:
    """What one device computes in an iteration."""

    rows: int  # completions of a rollout
    sampled: int  # completions that are sampled at once, in training or evaluation
    prefilled: int  # prompts before them
    micro_batch: int  # sequences in a forward pass
    prompt: int  # tokens
    completion: int  # tokens, at most
    layers: int  # that are read for signals; 0 without
    precision: str  # Lightning's
    devices: int
    updates: int = 1  # of an iteration
    shards: int = 1  # devices that the frozen weights are spread over
    served: bool = False  # a server writes the completions that are learned from; evaluation is sampled here

    @property
    def length(self) -> int:
        return self.prompt + self.completion


@dataclass(frozen=True)
class Estimate:
    """Bytes by part, FLOPs and operations by stage, of one device in one iteration."""

    parts: dict[str, int]  # that are there in each phase
    phases: dict[str, int]  # what each adds to them at most
    flops: dict[str, float]
    operations: int  # of a decoding step
    read: int  # bytes, by a decoding step in the middle of a completion
    parameters: int
    trained: int
    steps: int  # of decoding
    launch: float  # seconds that an operation of such a step takes at least
    reduced: float  # bytes of gradients that a device sends in an iteration: a ring sends each 2·(N − 1)/N times
    wide: bool  # float32 products

    @property
    def peak(self) -> int:
        return sum(self.parts.values()) + max(self.phases.values())

    def seconds(self, gpu: str) -> dict[str, float]:
        """Of an iteration's stages, if every completion runs to its limit."""
        _, narrow, wide, bandwidth = GPUS[gpu]
        rate = USED_FLOPS * 1e12 * (wide if self.wide else narrow)
        step = max(
            self.read / (USED_BANDWIDTH * bandwidth * 1e12), self.flops["step"] / rate, self.operations * self.launch
        )
        computed = {name: self.flops[name] / rate for name in ("score", "update")}
        return {"sample": self.steps * step, **computed, "reduce": self.reduced / LINK}


def build(policy: DictConfig, config: PreTrainedConfig, *, foldable: bool = True) -> nn.Module:
    """The configured policy on the meta device: shapes and dtypes without data."""
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(
            config, dtype=find_dtype(policy.dtype), attn_implementation=policy.attn_implementation
        ).requires_grad_(policy.full)
        if policy.activation_checkpointing:
            base.activation_checkpointing_enable({"use_reentrant": False})
        if policy.full:
            return base
        targets = policy.targets if isinstance(policy.targets, str) else list(policy.targets)
        lora = LoraConfig(r=policy.rank, lora_alpha=policy.alpha, target_modules=targets, task_type="CAUSAL_LM")
        model = get_peft_model(base, lora)
    foldable = foldable and policy.quantization is None
    if foldable and (policy.dtype == "float32" if policy.fold is None else policy.fold):
        make_foldable(model)
        for module in model.modules():
            if isinstance(module, FoldedLinear):
                module.FEW = 0  # a layout of oneDNN's own cannot be made without data
    return model


def estimate(policy: DictConfig, work: Workload, objective: Objective) -> Estimate:
    """Runs an iteration's stages on shapes."""
    config = AutoConfig.from_pretrained(find_source(policy.path), trust_remote_code=policy.trust_remote_code)
    model = build(policy, config, foldable=work.shards == 1)
    phases: dict[str, int] = {}
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=work.precision == "bf16-mixed")
    with FakeTensorMode(), Allocations() as memory, mixed:
        materialise(model)
        parts = fixed_parts(model, policy, memory.now, work)
        model.eval()
        with memory.phase(phases, "sampling"), folded(model), torch.no_grad():
            operations, cache = sample_once(model, work, memory)
        with memory.phase(phases, "scoring"), folded(model), torch.no_grad():
            logits, tokens = forward(model, work)
            selected_logps(logits, tokens)
            entropies(logits)
            del logits, tokens
        phases["scoring"] += signals(config, work)
        model.train()
        with memory.phase(phases, "update"), folded(model):
            learn(model, work, objective)
    read = parts["weights"] + cache // 2
    if work.shards > 1:
        parts["weights"] -= frozen_bytes(model) * (work.shards - 1) // work.shards
        phases = {name: size + gathered(model)[name] for name, size in phases.items()}
    with FakeTensorMode(), mixed:
        flops = count_flops(build(policy, config), work, objective)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Estimate(
        parts=parts,
        phases=phases,
        flops=flops,
        operations=operations,
        read=read,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trained=trained,
        steps=0 if work.served else work.completion,
        launch=CAPTURED if is_plain(model, make_cache(model.config)) else LAUNCH,
        reduced=work.updates * 2 * (1 - 1 / work.devices) * trained * 4,
        wide=policy.dtype == "float32" and work.precision.startswith("32"),
    )


def fixed_parts(model: nn.Module, policy: DictConfig, weights: int, work: Workload) -> dict[str, int]:
    """Bytes that stay from the first update on. Gradients are freed after an update and counted there."""
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    parts = {"weights": weights, "optimizer": 2 * trained}
    if policy.full:
        parts["reference"] = weights
    if work.devices > 1:
        parts["buckets of gradients"] = trained
    if policy.quantization is not None:
        packed = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
        packed = [weight for weight in packed if not weight.requires_grad][:-1]  # all but the output head
        parts["weights"] -= int(sum(weight.nbytes - NF4 * weight.numel() for weight in packed))
    return parts


def frozen_bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters() if not parameter.requires_grad)


def gathered(model: nn.Module) -> dict[str, int]:
    """Bytes of frozen weights that are gathered beside their shards, by phase: all, or what a pass holds at once.

    That is what lies outside of the layers, the layer at work, the buffer that it came in, and the next one's buffer.
    """
    frozen, layers = frozen_bytes(model), [frozen_bytes(layer) for layer in decoder_layers(model)]
    held = frozen - sum(layers) + 3 * max(layers)
    return {"sampling": frozen, "scoring": held, "update": held}


def sample_once(model: nn.Module, work: Workload, memory: Allocations) -> tuple[int, int]:
    """The prompts, and a decoding step at the end of completions. Returns its operations and the bytes of the cache."""
    cache = make_cache(model.config)
    model(input_ids=torch.zeros(work.prefilled, work.prompt, dtype=torch.long), past_key_values=cache, logits_to_keep=1)
    cache = make_cache(model.config)
    before = memory.now
    model(input_ids=torch.zeros(1, work.length - 1, dtype=torch.long), past_key_values=cache, logits_to_keep=1)
    cache.batch_repeat_interleave(work.sampled)
    held = memory.now - before
    before = memory.operations
    ids = torch.zeros(work.sampled, 1, dtype=torch.long)
    with fast_decoding(model):
        logits = model(input_ids=ids, position_ids=ids, past_key_values=cache).logits[:, -1]
    draw(logits, 1.0, None)
    return memory.operations - before, held


def forward(model: nn.Module, work: Workload) -> tuple[Tensor, Tensor]:
    """A micro-batch's logits of completion tokens, and the tokens."""
    ids = torch.zeros(work.micro_batch, work.length, dtype=torch.long)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=work.completion + 1).logits[:, :-1]
    return logits, ids[:, work.prompt :]


def learn(model: nn.Module, work: Workload, objective: Objective) -> None:
    """A micro-batch's share of an update."""
    logps = selected_logps(*forward(model, work))
    mask = torch.ones(logps.shape, dtype=torch.bool)
    losses = objective.losses(logps, logps.detach(), torch.ones(logps.shape), mask, logps.detach())
    (losses * mask).sum().backward()


def signals(config: PreTrainedConfig, work: Workload) -> int:
    """Bytes that reading attention adds: one layer in float32, blocks of its rows, and every head's values."""
    if not work.layers:
        return 0
    heads, width = config.num_attention_heads, getattr(config, "head_dim", None)
    width = width or config.hidden_size // heads
    layer = work.micro_batch * work.length * 3 * heads * width * 4  # queries, scaled queries, keys of all heads
    rows, size = block_size(heads, work.length, work.length, on_cpu=False)
    block = min(rows, work.micro_batch) * heads * size * work.length
    kept = 2 * work.rows * work.length * heads * work.layers * 4  # until the first iteration's heads are grouped
    return layer + 4 * block * 4 + kept


def count_flops(model: nn.Module, work: Workload, objective: Objective) -> dict[str, float]:
    """FLOPs of an iteration's scoring and updates, and of one decoding step."""
    materialise(model)
    one = Workload(**vars(work) | {"micro_batch": 1})
    counted = {}
    for name in ("score", "update"):
        model.train(name == "update")
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(name == "update"):
            forward(model, one) if name == "score" else learn(model, one, objective)
        counted[name] = float(counter.get_total_flops()) * work.rows
    counted["step"] = counted["score"] / work.rows / work.length * work.rows
    return counted


def workload(cfg: DictConfig, config: PreTrainedConfig) -> Workload:
    """What a run's config makes of one device."""
    devices = devices_of_a_node(cfg.trainer)
    shards = devices if sharding(cfg.trainer) else 1
    devices *= cfg.trainer.get("num_nodes", 1)
    prompts = max(1, cfg.prompts_per_iteration // devices)
    evaluated = cfg.callbacks.evaluation.prompts_at_once
    reads = "attention_signals" in cfg.callbacks
    served = "url" in cfg.sampler
    layers = cfg.signals.layers if isinstance(cfg.signals.layers, str) else list(cfg.signals.layers)
    return Workload(
        rows=prompts * cfg.group_size,
        sampled=max(0 if served else prompts * cfg.group_size, evaluated * cfg.callbacks.evaluation.samples),
        prefilled=evaluated if served else max(prompts, evaluated),
        micro_batch=min(cfg.micro_batch_size, prompts * cfg.group_size),
        prompt=cfg.max_prompt_tokens or cfg.prompt_tokens,
        completion=cfg.max_completion_tokens,
        layers=len(resolve_layers(layers, config.num_hidden_layers)) if reads else 0,
        precision=str(cfg.trainer.precision),
        devices=devices,
        updates=cfg.updates_per_iteration,
        shards=shards,
        served=served,
    )


def report(cfg: DictConfig) -> str:
    """The estimate of a run, as it is printed."""
    config = AutoConfig.from_pretrained(find_source(cfg.policy.path), trust_remote_code=cfg.policy.trust_remote_code)
    work = workload(cfg, config)
    settings = {key: value for key, value in cfg.algorithm.objective.items() if not key.startswith("_")}
    found = estimate(cfg.policy, work, Objective(**settings))
    lines = [
        f"{cfg.policy.path}: {found.parameters:,} parameters, {found.trained:,} of them trained",
        f"each of {work.devices} devices: {work.rows} completions an iteration, {work.sampled} sampled at once, "
        f"{work.prompt} + {work.completion} tokens",
        "",
        *(f"{size / GIB:9.2f} GiB  {name}" for name, size in found.parts.items()),
        *(f"{size / GIB:9.2f} GiB  more in {name}" for name, size in found.phases.items()),
        f"{found.peak / GIB:9.2f} GiB  at most, and about {CUDA:.0f} for CUDA itself",
        "",
        "          memory   seconds: sample  score  update  reduce   hours for the run  tokens/s",
    ]
    for name, (size, *_) in GPUS.items():
        fits = "fits" if found.peak / GIB + CUDA <= size else "short"
        stages = found.seconds(name)
        seconds = sum(stages.values())
        hours, rate = seconds * cfg.iterations / 3600, work.devices * work.rows * work.completion / seconds
        shown = "".join(f"{each:8.1f}" for each in stages.values())
        lines.append(f"{name:9} {fits:>6} {size:4} GiB {shown} {hours:12.1f} {rate:15.0f}")
    lines.append("Memory follows the code; time assumes every completion at its limit, evaluations left out.")
    if work.shards > 1:
        lines.append(
            "Gathering the frozen weights is not in the time; how much of it computing hides depends on the links."
        )
    if work.served:
        lines.append("What the server of sampler.url needs is not in it, nor is the time that is waited for it.")
    return "\n".join(lines)
