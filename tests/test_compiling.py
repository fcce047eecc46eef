"""Compiled layers learn what plain ones do, and only where something is learned."""

import shutil

import pytest
import torch

from rhythm import compiling
from rhythm.policy import Policy
from rhythm.seeding import seed_adapter
from tests.policies import perturb
from tests.training import EMBEDDED, assert_same


def gradient(fold, *, compile, shapes=((4, 30), (4, 41), (3, 50))):
    """Of some batches together, as updates compute them."""
    seed_adapter(0)
    policy = perturb(Policy(EMBEDDED, fold=fold, compile=compile)).train()
    for seed, shape in enumerate(shapes):
        ids = torch.randint(3, 200, shape, generator=torch.Generator().manual_seed(seed))
        with policy.folded():
            policy.model(input_ids=ids, use_cache=False).logits.log_softmax(-1)[..., 5].mean().backward()
    return {name: parameter.grad for name, parameter in policy.model.named_parameters() if parameter.requires_grad}


@pytest.fixture
def compiled_calls(monkeypatch):
    """Layers go through Dynamo and AOTAutograd, without a compiler of C++; how often each was called compiled."""
    calls = []

    def traced(forward, **settings):
        function = torch_compile(forward, **settings, backend="aot_eager")
        return lambda *args, **kwargs: (calls.append(1), function(*args, **kwargs))[1]

    torch_compile = torch.compile
    monkeypatch.setattr(compiling.torch, "compile", traced)
    yield calls
    torch._dynamo.reset()


@pytest.mark.parametrize("fold", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_gradient_is_that_of_plain_layers(fold, compiled_calls):
    assert_same(gradient(fold, compile=True), gradient(fold, compile=False))
    assert len(compiled_calls) == 3 * 6  # batches and layers


def test_without_a_gradient_layers_stay_plain(compiled_calls):
    policy = Policy(EMBEDDED, compile=True)
    with torch.no_grad():
        policy.model(input_ids=torch.ones(2, 5, dtype=torch.long))
    assert not compiled_calls


def test_without_a_compiler_a_line_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"policy\.compile=true needs a C"):
        Policy(EMBEDDED, compile=True)


@pytest.mark.slow
def test_the_gradient_is_the_same_when_it_is_really_compiled():
    assert_same(gradient(None, compile=True), gradient(None, compile=False))
