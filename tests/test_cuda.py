"""What the CPU tests show holds on a CUDA device too; there is none where these are skipped."""

import copy

import pytest
import torch

from rhythm.attention.signals import attention_signals
from rhythm.callbacks.attention_signals import AttentionSignals
from rhythm.credit import CoupledCredit
from rhythm.policy import Policy
from rhythm.rollout import sample
from rhythm.scoring import score
from rhythm.types import Prompts
from tests.models import assert_agree, eager_maps, ragged_batch, reference, tiny_model
from tests.policies import perturb, word_tokenizer
from tests.test_rollout import PAD, WORDS, greedily, often_ending, peaked, put_on, ragged_prompts
from tests.training import EMBEDDED, countdown, run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


CUDA = "cuda"


@pytest.fixture(autouse=True)
def exact_products():
    """No TF32: the same float32 as on the CPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize(("window", "horizon"), [(3, (2, 6)), (10, (10, None))])
def test_signals_equal_arithmetic_on_eager_maps(kind, window, horizon):
    model, batch = tiny_model(kind), ragged_batch()
    tensors = (batch.input_ids, batch.attention_mask, batch.completion_mask)
    settings = {"layers": "all", "window": window, "horizon": horizon}
    expected = reference(eager_maps(model, *tensors[:2]), batch.completion_mask, window, horizon)
    found = attention_signals(copy.deepcopy(model).to(CUDA), *(t.to(CUDA) for t in tensors), **settings)
    for name in ("waad", "waad_drop", "fai"):
        setattr(found, name, getattr(found, name).cpu())
    assert_agree(found, expected, batch.completion_mask)


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
@pytest.mark.parametrize("group_size", [1, 3])
def test_greedy_completions_are_those_of_generate(kind, group_size):
    changes = {"tie_word_embeddings": False} if kind == "gpt2" else {}
    model, prompts = peaked(kind, **changes).to(CUDA), put_on(CUDA, ragged_prompts())
    eos = often_ending(greedily(model, prompts, None, 40))
    expected = greedily(model, prompts, eos, 40)
    tokenizer = word_tokenizer(WORDS, pad=f"w{PAD}", eos=f"w{eos}")
    rollout = sample(model, tokenizer, prompts, group_size=group_size, max_completion_tokens=40, temperature=0)
    assert torch.equal(rollout.completion_ids, expected.repeat_interleave(group_size, 0))


@pytest.mark.parametrize("fold", [True, False])
def test_scores_of_sampled_completions_are_those_of_the_cpu(fold):
    policy = perturb(Policy(EMBEDDED, fold=fold)).to(CUDA)
    task = countdown()
    encoded = policy.tokenizer([task.prompt(problem) for problem in task.problems("test", 4)], padding=True)
    mask = torch.tensor(encoded["attention_mask"], device=CUDA).bool()
    prompts = Prompts(torch.tensor(encoded["input_ids"], device=CUDA), mask, task.problems("test", 4))
    draw = torch.Generator(CUDA).manual_seed(0)
    with policy.folded():
        rollout = sample(
            policy.model, policy.tokenizer, prompts, group_size=4, max_completion_tokens=80, generator=draw
        )
        logps, entropy = score(policy.model, rollout, micro_batch_size=8, temperature=1.0)
    policy.to("cpu")
    for name, value in vars(rollout).items():
        setattr(rollout, name, value.cpu() if isinstance(value, torch.Tensor) else value)
    with policy.folded():
        expected = score(policy.model, rollout, micro_batch_size=8, temperature=1.0)
    torch.testing.assert_close(logps.cpu(), expected[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(entropy.cpu(), expected[1], atol=1e-4, rtol=0, equal_nan=True)


def test_an_iteration_with_coupled_credit_learns_and_starts_at_a_ratio_of_one():
    credit, signals = CoupledCredit(), AttentionSignals()
    _, watcher = run(credit=credit, callbacks=[signals], accelerator="gpu", iterations=3, prompts=8, lr=1e-2)
    rollout = watcher.rollout
    assert rollout.input_ids.device.type == CUDA
    assert watcher.metrics["updates/taken"] == 1
    assert watcher.metrics["clip_ratio/low_mean"] == watcher.metrics["clip_ratio/high_mean"] == 0
    assert watcher.metrics["grad_norm"] > 0
    assert set(rollout.credit[rollout.completion_mask].unique().tolist()) >= {1.0, 1.5}


def test_the_same_seed_gives_the_same_run_twice():
    settings = {"credit": CoupledCredit(), "accelerator": "gpu", "iterations": 2, "lr": 1e-2}
    first, second = (run(callbacks=[AttentionSignals()], **settings)[1] for _ in range(2))
    assert torch.equal(first.rollout.completion_ids, second.rollout.completion_ids)
    torch.testing.assert_close(first.rollout.old_logps, second.rollout.old_logps, atol=1e-5, rtol=0)


def test_bfloat16_mixed_precision_learns():
    _, watcher = run(accelerator="gpu", precision="bf16-mixed", iterations=2, prompts=8, lr=1e-2)
    assert watcher.metrics["updates/taken"] == 1
    assert watcher.metrics["updates/not_finite"] == 0
