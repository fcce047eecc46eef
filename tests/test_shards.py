"""Frozen weights in shards, by one process; two of them together are in distributed/test_ddp.py."""

from contextlib import suppress

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from rhythm.attention.implementation import decoder
from rhythm.policy import Policy
from rhythm.seeding import seed_adapter
from rhythm.shards import shard
from rhythm.sharing import check_mergeable
from tests.policies import perturb, save_tiny_policy

IDS = torch.randint(3, 50, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def mesh(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def made(folder, mesh=None, **settings):
    seed_adapter(0)
    policy = perturb(Policy(str(folder), **settings))
    if mesh is not None:
        shard(policy.model, mesh)
    return policy


def in_shards(policy):
    return {isinstance(p, DTensor) for p in policy.model.parameters() if not p.requires_grad}


def gradients(policy):
    """Of two passes with one backward pass, as the start-up check makes them."""
    policy.train()
    total = sum(policy.model(input_ids=ids).logits.log_softmax(-1)[..., 5].sum() for ids in IDS.split(2))
    total.backward()
    return {name: p.grad for name, p in policy.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_the_gradient_is_that_of_whole_weights(kind, checkpointing, tmp_path, mesh):
    folder = save_tiny_policy(tmp_path / "base", kind)
    expected = gradients(made(folder, fold=False))
    policy = made(folder, mesh, activation_checkpointing=checkpointing)
    found = gradients(policy)
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1
    for name, gradient in expected.items():
        assert type(found[name]) is torch.Tensor
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-6)
    assert in_shards(policy) == {True}


@torch.no_grad()
def test_weights_are_whole_for_a_while_whatever_happens_there(tiny_folder, mesh):
    policy, plain = made(tiny_folder, mesh), made(tiny_folder)
    expected = plain.model(input_ids=IDS).logits
    assert [policy.sharded, plain.sharded] == [True, False]
    with policy.whole():
        decoder(policy.model)(input_ids=IDS)  # as attention is read, before any pass of all of the model
        with policy.whole():
            policy.adapter_state()
        assert in_shards(policy) == {False}
        torch.testing.assert_close(policy.model(input_ids=IDS).logits, expected)
        assert in_shards(policy) == {False}
    with suppress(IndexError), policy.whole():
        policy.model(input_ids=IDS + 1000)  # no such tokens
    assert in_shards(policy) == {True}
    torch.testing.assert_close(policy.model(input_ids=IDS).logits, expected)
    assert in_shards(policy) == {True}


def test_nothing_is_folded_into_shards_or_merged_with_them(tiny_folder, mesh):
    policy = made(tiny_folder, mesh)
    with policy.folded(), policy.whole():
        assert all(getattr(module, "folded", None) is None for module in policy.model.modules())
    with pytest.raises(ValueError, match=r"^callbacks.export.merged=true: the weights are in shards; leave it out$"):
        check_mergeable(policy)
