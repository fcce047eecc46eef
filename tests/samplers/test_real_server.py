"""The same of a real vLLM server, where one runs: `VLLM_URL=http://127.0.0.1:8000 VLLM_BASE=<folder or hub name>`.

It must be started as experiments/vllm says, with --max-lora-rank 16; the base is loaded here too.
"""

import os

import pytest
import torch

from rhythm.data import collate_prompts
from rhythm.policy import Policy
from rhythm.samplers import VLLMSampler
from rhythm.scoring import score
from tests.policies import perturb
from tests.training import countdown

URL, BASE = os.environ.get("VLLM_URL"), os.environ.get("VLLM_BASE")
pytestmark = pytest.mark.skipif(not (URL and BASE), reason="no vLLM server: VLLM_URL and VLLM_BASE name one")
NEAR = 0.02  # nats, the mean over tokens: float32 gives 1e-6, bfloat16 some 1e-3


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("stop_strings", [(), ("=",)])
def test_a_real_server_samples_from_what_is_scored_and_ends_where_the_policy_does(tmp_path, stop_strings, temperature):
    task, sampler = countdown(), VLLMSampler(URL, tmp_path)
    policy = perturb(Policy(BASE, stop_strings=stop_strings))
    prompts = collate_prompts(task, policy.tokenizer, list(task.train_problems())[:3], policy.chat)
    settings = {"group_size": 3, "max_completion_tokens": 144, "temperature": temperature}
    for seed in (1, 2):  # the second as after an update
        perturb(policy, seed=seed)
        sampler.prepare(policy)
        rollout = sampler.sample(policy, prompts, seed=seed, **settings)
        logps, _ = score(policy.model, rollout, micro_batch_size=9, temperature=temperature)
        mask = rollout.completion_mask
        assert (logps - rollout.sampler_logps)[mask].abs().mean() < NEAR
        assert len({tuple(ids) for ids in rollout.completion_ids.tolist()}) > 1
        for ids, kept, truncated in zip(rollout.completion_ids, mask, rollout.truncated.tolist(), strict=True):
            rows, written = torch.tensor([0]), ids[kept][None]
            ends = [bool(policy.stopping.ended(written[:, : t + 1], rows)) for t in range(written.shape[1])]
            assert ends == [False] * (len(ends) - 1) + [not truncated]
    perturb(policy, seed=3)
    with pytest.raises(ValueError, match=r"The model `rhythm-\w+` does not exist"):
        sampler.sample(policy, prompts, **settings)
