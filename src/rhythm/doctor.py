"""What a run builds on, looked at before its first iteration: each check says what it found, or what to change.

Every start runs them without a word, by the `StartupCheck` callback; `python train.py doctor=true` prints them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from omegaconf import DictConfig, open_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rhythm.attention.heads import resolve_layers
from rhythm.attention.probe import num_layers
from rhythm.callbacks.attention_signals import AttentionSignals
from rhythm.policy import Policy
from rhythm.rollout import pack
from rhythm.runs import check_counts, check_free
from rhythm.scoring import completion_logps, micro_batches, score
from rhythm.tasks.base import Task
from rhythm.types import Prompts, Rollout

if TYPE_CHECKING:
    from torch.optim import Optimizer

TOLERANCE = 1e-5  # nats; also of |ratio − 1|, as exp is steep by 1 there
CHECKPOINTS = 4  # last, previous, best, and the one being written
STATES = 3  # of the adapter's size in each: parameters and the two moments of Adam
EVENTS = 100_000_000  # bytes for everything else in a run's folder
NEAR_ZERO = (
    "a GRPO loss near zero is normal: advantages sum to zero in a group and the first ratio is 1, so the loss says\n"
    "nothing about learning; watch `reward` and, held out, `eval/pass@1`"
)


# ---- the checks: each returns what it found, and raises ValueError in one line with the mend


def check_adapter(policy: Policy, optimizer: Optimizer) -> str:
    """What is saved is what is trained, and the optimizer holds all of it."""
    saved = {tensor.data_ptr(): name for name, tensor in policy.adapter_state().items()}
    trained = {p.data_ptr(): name for name, p in policy.model.named_parameters() if p.requires_grad}
    if frozen := [name for at, name in saved.items() if at not in trained]:
        raise ValueError(f"the adapter is not trained: {len(frozen)} of its tensors require no gradient, {frozen[0]}")
    if unsaved := [name for at, name in trained.items() if at not in saved]:
        raise ValueError(
            f"weights outside of the adapter would be trained and lost, as no checkpoint holds {unsaved[0]}"
        )
    held = {parameter.data_ptr() for group in optimizer.param_groups for parameter in group["params"]}
    if missing := [name for at, name in trained.items() if at not in held]:
        raise ValueError(
            f"algorithm.optimizer does not hold {len(missing)} of the adapter's {len(trained)} tensors, first "
            f"{missing[0]}; it must take all the parameters that it is given"
        )
    parameters = sum(parameter.numel() for parameter in policy.adapter_parameters())
    return f"{parameters:,} parameters in {len(trained)} tensors, trained, saved and in the optimizer"


def check_reference(policy: Policy, rollout: Rollout) -> str:
    """The reference gives what the base weights give without any code of the adapter's."""
    with policy.reference():
        reference, _ = score(policy.model, rollout, micro_batch_size=1, temperature=1.0)
        with base_layers_alone(policy.model):
            base, _ = score(policy.model, rollout, micro_batch_size=1, temperature=1.0)
    difference = float((reference - base).abs().max())
    if not difference <= TOLERANCE:
        raise ValueError(
            f"the reference is not the base: log-probabilities differ by {difference:.2g} where the adapter is off; "
            "use a plain LoRA adapter that is not merged"
        )
    return f"log-probabilities without the adapter are the base's; largest difference {difference:.1g} nats"


def check_first_update(policy: Policy, rollout: Rollout, temperature: float, *, exact: bool) -> str:
    """The passes of an update agree with the scoring pass, and the adapter gets a gradient.

    |ratio − 1| may be 1e-5, and for a token of less than −1 nat that much a nat: on the embedded policy, far from its
    base, rounding alone gave 1.1e-5 at some of the improbable tokens, whose logits and log-sum-exp are larger.

    Args:
        exact: everything is computed in float32, so that they must.
    """
    mask = rollout.completion_mask
    deviations, allowed, total = [], [], torch.zeros((), device=mask.device)
    policy.eval()
    with policy.folded():
        old_logps, _ = score(policy.model, rollout, micro_batch_size=len(mask), temperature=temperature)
        policy.train()
        for batch in micro_batches(rollout, torch.arange(len(mask), device=mask.device), 1):
            logps = completion_logps(policy.model, batch, temperature)
            total = total + logps.sum()
            old = old_logps[batch.rows, : logps.shape[1]]
            deviations.append(((logps.detach() - old).exp() - 1).abs().flatten())
            allowed.append(TOLERANCE * (-old).clamp(min=1).flatten())
        parameters = policy.adapter_parameters() if total.requires_grad else []
        # Apart from .grad and from the ranks' synchronised backward passes.
        gradients = torch.autograd.grad(total, parameters, allow_unused=True) if parameters else ()
    policy.eval()
    off, bound = torch.cat(deviations), torch.cat(allowed)
    worst = int((off / bound).argmax())
    if exact and not off[worst] <= bound[worst]:
        raise ValueError(
            f"the first ratio is off 1 by {off[worst]:.2g} in float32, more than {bound[worst]:.2g}: an update does "
            "not compute the log-probabilities of the scoring pass; look for dropout, TF32 or an inexact "
            "policy.attn_implementation"
        )
    if not any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients):
        raise ValueError("no gradient reaches the adapter; look for a checkpointing or a merge that detaches it")
    return f"the first ratio is 1; largest deviation {off.max():.1g}; the adapter gets a gradient"


def check_verifier(task: Task) -> str:
    """The task's verifier gives its known answers the rewards that they are known to have."""
    known = task.known_answers()
    for problem, completion, expected in known:
        reward = task.reward(problem, completion)
        if reward != expected:
            raise ValueError(
                f"{type(task).__name__} gives {completion!r} a reward of {reward:g} for {dict(problem)}, where "
                f"{expected:g} is right; mend its verifier, or what it calls a known answer"
            )
    if not known:
        return "not tried: the task has no known answers in this form"
    return f"{len(known)} known answers get the rewards that they should"


def check_layers(model: nn.Module, callbacks: Iterable[Callback]) -> str:
    """Which layers are read; that each of them can be is what the callback itself has seen to."""
    readers = [callback for callback in callbacks if isinstance(callback, AttentionSignals)]
    chosen = sorted({layer for reader in readers for layer in resolve_layers(reader.layers, num_layers(model))})
    if not chosen:
        return "none is read; callbacks=attention reads some"
    return f"{', '.join(map(str, chosen))} of 0 to {num_layers(model) - 1} were reached"


def check_disk(folder: Path, adapter: Mapping[str, Tensor]) -> str:
    """The checkpoints of a run have room where they go."""
    size = sum(tensor.nbytes for tensor in adapter.values())
    needed, free = size * (CHECKPOINTS * STATES + 1) + EVENTS, shutil.disk_usage(folder).free
    told = f"{free / 1e9:.1f} GB are free, and a run writes about {needed / 1e9:.1f}"
    if free < needed:
        raise ValueError(f"output_dir={folder}: {told}; make room, or name another one")
    return told


def check_tags(loggers: Iterable[Logger], expected: Iterable[str]) -> str:
    """What was recorded can be read back from TensorBoard's newest file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    boards = [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]
    written = 0
    for board in boards:
        files = sorted(Path(board.log_dir).glob("events.*"), key=lambda file: file.stat().st_mtime)
        tags = set(EventAccumulator(str(files[-1])).Reload().Tags()["scalars"]) if files else set()
        if missing := sorted(set(expected) - tags):
            raise ValueError(
                f"{len(missing)} tags did not reach TensorBoard's file in {Path(board.log_dir)}, first {missing[0]}; "
                "is its disk full, or was the folder moved?"
            )
        written = len(tags)
    return f"{written} are in TensorBoard" if boards else "not looked for: no logger is TensorBoard's"


# ---- what the checks look at


def small_rollout(prompts: Prompts, tokenizer: PreTrainedTokenizerBase) -> Rollout:
    """Two prompts, each followed by its own last tokens: enough to compare passes on, and nothing to wait for."""
    prompts = Prompts(prompts.input_ids[:2], prompts.attention_mask[:2], prompts.problems[:2])
    ids = prompts.input_ids[:, -min(8, int(prompts.attention_mask.sum(1).min())) :]
    everything = torch.ones_like(ids, dtype=torch.bool)
    return pack(prompts, ids, everything, truncated=everything[:, 0], group_size=1, tokenizer=tokenizer)


@contextmanager
def base_layers_alone(model: nn.Module) -> Iterator[None]:
    """Inside, every adapted layer gives what the layer that it was made from gives."""
    with ExitStack() as stack:
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                hook = layer.register_forward_hook(
                    lambda layer, inputs, named, output: layer.base_layer(*inputs, **named), with_kwargs=True
                )
                stack.callback(hook.remove)
        yield


@contextmanager
def rehearsal(cfg: DictConfig) -> Iterator[DictConfig]:
    """The config of one short iteration with everything else as given, in a folder that is gone afterwards.

    Raises:
        ValueError: a run is to be resumed; that is a start like any other and looks by itself. Or the run would be
            refused for what the short one does not have: its numbers, its folder.
    """
    if cfg.ckpt_path is not None:
        raise ValueError("doctor=true looks at a run from its beginning; leave ckpt_path out")
    check_counts(cfg)
    if cfg.output_dir:
        check_free(Path(cfg.output_dir))
    beside = Path(cfg.output_dir).parent if cfg.output_dir else Path("logs")
    beside.mkdir(parents=True, exist_ok=True)  # the disk that the run would write to
    small = cfg.copy()
    small.iterations = small.updates_per_iteration = 1
    small.group_size = min(cfg.group_size, 2)
    small.max_completion_tokens = min(cfg.max_completion_tokens, 32)
    with open_dict(small):
        small.callbacks.pop("progress", None)
        if export := small.callbacks.pop("export", None):
            kept = {name: export[name] for name in ("merged", "push_to_hub") if name in export}
            small.callbacks.export = {"_target_": "rhythm.callbacks.export.ExportCheck", **kept}
        small.trainer.enable_progress_bar = False
    if "evaluation" in small.callbacks:
        small.callbacks.evaluation.problems = min(cfg.callbacks.evaluation.problems, 1)  # none is refused
    with TemporaryDirectory(prefix="doctor-", dir=beside) as folder:
        small.output_dir = folder
        yield small
