"""What others need of a trained policy: a model card, merged weights, a repository on the hub."""

from __future__ import annotations

import copy
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from torch import Tensor
from transformers import AutoModelForCausalLM

from rhythm.loading import EMBEDDED
from rhythm.module import GRPOModule
from rhythm.policy import Policy, save_weights
from rhythm.version import VERSION

ROWS = {
    "eval/pass@1": "pass@1",
    "eval/pass@8": "pass@8",
    "eval/pass@1_well_formed": "pass@1 of well-formed",
    "eval/well_formed": "share of well-formed",
    "eval/mean_length": "tokens a completion",
    "eval/kl": "KL to the reference, nats",
}
LIBRARIES = ("torch", "transformers", "peft", "lightning")
# Mean KL in nats a token from the adapted policy to its merged weights: float32 adds up exactly but for the order of
# sums; in 16 bits every weight of the sum is rounded to 8 or 11 bits.
AGREEMENT = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}
# The HTTP library's own error, whichever the hub's client uses: no network, no such host.
HUB_ERRORS = (HfHubHTTPError.__bases__[0], LocalTokenNotFoundError, HFValidationError)


def cells(evaluation: dict[str, Any]) -> dict[str, str]:
    """The rows' names to held-out numbers, each with its 95% interval where there is one."""
    shown = {}
    for tag, name in ROWS.items():
        if tag in evaluation["metrics"]:
            interval = evaluation["intervals"].get(tag)
            behind = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
            shown[name] = f"{evaluation['metrics'][tag]:.3f}{behind}"
    return shown


def card(module: GRPOModule, outcome: dict[str, Any], command: str | None) -> ModelCard:
    """The model card: what the weights belong to, what made them, what they scored and on how much.

    Args:
        outcome: as in metrics.json: iterations, and the `first` and `last` evaluation.
        command: what makes the same run again; None leaves it out.
    """
    policy, task, last = module.policy, type(module.task).__name__, outcome["last"]
    train, test = module.task.origins()
    on_hub = not policy.path.startswith(EMBEDDED) and not Path(policy.path).exists()
    result = EvalResult(
        task_type="text-generation",
        dataset_type=task.lower(),
        dataset_name=f"{task}: {test}",
        metric_type="pass@1",
        metric_value=round(last["metrics"]["eval/pass@1"], 4),
        metric_args={"problems": last["problems"], "samples": last["samples"]},
    )
    data = ModelCardData(
        base_model=policy.path if on_hub else None,
        library_name="transformers" if policy.full else "peft",
        pipeline_tag="text-generation",
        tags=["rhythm", "grpo"] if policy.full else ["rhythm", "grpo", "lora"],
        model_name=f"{task.lower()}-{module.credit.name}",
        eval_results=[result],
    )
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    before, after = cells(outcome["first"]), cells(last)
    rows = "\n".join(f"| {name} | {before.get(name, '')} | {value} |" for name, value in after.items())
    method = f"{module.credit.name}, in GRPO ([arXiv:2510.13554](https://arxiv.org/abs/2510.13554))"
    trained = f"{outcome['iterations']} iterations of {module.updates_per_iteration} updates in groups of"
    size = f"{last['problems']} held-out problems, {last['samples']} samples of each at temperature 1"
    again = f"\n## Made by\n\n```bash\n{command}\n```\n" if command else ""
    return ModelCard(f"""---
{data.to_yaml()}
---

# {"All weights" if policy.full else "A LoRA adapter"} trained on {task} with {module.credit.name} credit

| | |
|---|---|
| base | `{policy.path}` |
| task | {task} |
| problems | {train}; held out: {test} |
| credit | {method} |
| trained | {trained} {module.group_size} |
| seed | {module.seed}, one run |

## Results

{size}; 95% intervals by bootstrap over problems.

| | before | after |
|---|---|---|
{rows}
{again}
rhythm {VERSION}, Python {platform.python_version()}, {versions}.

## Use

```python
{usage(policy, on_hub)}
```
""")


def usage(policy: Policy, on_hub: bool) -> str:
    """Lines of Python that load the folder of the card."""
    if policy.full:
        return 'from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM.from_pretrained("<here>")'
    if not on_hub:
        return f'from rhythm.policy import Policy\n\nmodel = Policy("{policy.path}", adapter="<here>").model'
    dtype = str(policy.model.get_base_model().dtype).removeprefix("torch.")
    return f"""from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{policy.path}", dtype="{dtype}")
model = PeftModel.from_pretrained(base, "<here>")"""


def check_mergeable(policy: Policy) -> None:
    """Raises ValueError where there is no adapter, or no plain matrices to fold it into."""
    if policy.full or policy.quantized or policy.sharded:
        why = "every weight is trained already" if policy.full else "a base in 4 bits would round the adapter away"
        why = "the weights are in shards" if policy.sharded else why
        raise ValueError(f"callbacks.export.merged=true: {why}; leave it out")


@torch.no_grad()
def merge(policy: Policy, folder: str | Path, prompts: Sequence[str]) -> float:
    """Writes the base with the adapter folded in as a model of its own, and compares it with the adapter.

    The policy is left as it is. The sum is formed in float32 and rounded once, to the base's dtype.

    Args:
        folder: a new one.
        prompts: texts whose next-token distributions are compared.
    Returns:
        The mean KL in nats a token from the adapted policy to the merged model, as read back from the folder.

    Raises:
        FileExistsError: the folder is not new.
        ValueError: the two differ by more than rounding.
    """
    check_mergeable(policy)
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; merged weights go into a new folder")
    was_training, dtype = policy.training, policy.model.get_base_model().dtype
    policy.eval()
    merged = copy.deepcopy(policy.model).to(torch.float32).merge_and_unload(safe_merge=True).to(dtype)
    save_weights(merged, folder)
    policy.tokenizer.save_pretrained(folder)
    del merged
    alone = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=policy.model.config._attn_implementation
    )
    batch = policy.tokenizer(list(prompts), return_tensors="pt", padding=True).to(policy.device)
    kl = divergence(policy.model(**batch).logits, alone.to(policy.device)(**batch).logits)[batch["attention_mask"] == 1]
    policy.train(was_training)
    if not kl.mean() <= AGREEMENT[dtype]:
        raise ValueError(
            f"{folder}: the merged weights differ from the adapter by {kl.mean():.1e} nats a token, where rounding to "
            f"{dtype} makes less than {AGREEMENT[dtype]:.0e}; share the adapter instead"
        )
    return float(kl.mean())


def divergence(logits: Tensor, others: Tensor) -> Tensor:
    """KL in nats from softmax(logits) to softmax(others), [..., V] to [...]."""
    logps, other_logps = logits.double().log_softmax(-1), others.double().log_softmax(-1)
    return F.kl_div(other_logps, logps, reduction="none", log_target=True).sum(-1)


def check_login(repository: str) -> None:
    """Raises OSError where the hub cannot be reached or does not know who asks: before a run rather than after it."""
    try:
        HfApi().whoami()
    except HUB_ERRORS as error:
        reason = str(error).strip().splitlines()[0]
        raise OSError(f"callbacks.export.push_to_hub={repository}: {reason}; run `hf auth login`") from error


def push(folder: Path, repository: str) -> str:
    """Uploads a folder to a repository of the hub, which is made private where it is not there. Returns its address.

    Raises:
        OSError: the hub refuses; the message says how to try again.
    """
    try:
        made = HfApi().create_repo(repository, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Trained by rhythm")
    except HUB_ERRORS as error:
        reason = str(error).strip().splitlines()[0]
        raise OSError(f"{folder} could not be pushed: {reason}; try again: hf upload {repository} {folder}") from error
    return str(made)
