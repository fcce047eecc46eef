import pytest
import torch
from transformers.pytorch_utils import Conv1D

from rhythm.folding import FoldedLinear, FoldedProduct
from rhythm.policy import Policy
from rhythm.seeding import seed_adapter
from tests.policies import perturb, save_tiny_policy

close = torch.testing.assert_close
IDS = torch.tensor([[5, 17, 3, 40, 22, 9, 31, 12], [8, 8, 2, 50, 7, 1, 30, 4]])


@pytest.fixture(scope="module", params=["qwen3", "gpt2"])
def folder(request, tmp_path_factory):
    """GPT-2 has biases and keeps its matrices transposed."""
    target = tmp_path_factory.mktemp(request.param)
    save_tiny_policy(target, request.param)
    return target


def tiny(folder, **settings):
    seed_adapter(0)
    return perturb(Policy(str(folder), **({"rank": 4, "alpha": 12} | settings)))


def outputs(policy):
    """Logits, the gradient of every adapter tensor and that of the embedded input, of a loss that reads all logits."""
    embedded = policy.model.get_input_embeddings()(IDS).detach().requires_grad_()
    logits = policy.model(inputs_embeds=embedded).logits
    target = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    (logits.log_softmax(-1) * target).sum().backward()
    gradients = {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}
    policy.model.zero_grad()
    return logits.detach(), gradients | {"input": embedded.grad}


def test_the_product_and_its_gradients_by_finite_differences():
    draw = torch.Generator().manual_seed(0)
    x, a, b, bias, weight = (
        torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in [(2, 3, 5), (2, 5), (4, 2), (4,), (4, 5)]
    )
    for tensor in (x, a, b):
        tensor.requires_grad_()

    def product(x, a, b):  # whose forward knows A and B through the sum alone, so the sum is made from them here
        return FoldedProduct.apply(x, (weight + 1.5 * b @ a).detach(), bias, a, b, 1.5)

    close(product(x, a, b), x @ weight.T + 1.5 * x @ a.T @ b.T + bias)
    assert torch.autograd.gradcheck(product, (x, a, b))


def test_folded_a_policy_has_the_logits_and_gradients_of_peft(folder):
    policy = tiny(folder)
    for seed in range(2):  # it follows the adapter
        perturb(policy, seed=seed)
        policy.train(seed == 0)
        logits, gradients = outputs(policy)
        with policy.folded():
            folded_logits, folded_gradients = outputs(policy)
        close(folded_logits, logits, rtol=0, atol=1e-5)
        assert folded_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert gradient.abs().max() > 1e-3
            close(folded_gradients[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))
        with torch.no_grad(), policy.reference():
            assert (policy.model(input_ids=IDS).logits - logits).abs().max() > 0.02


def test_every_matrix_is_one_product(folder, monkeypatch):
    policy, multiplied = tiny(folder), []
    plain = FoldedProduct.forward

    def counted(ctx, x, *rest):
        multiplied.append(x.shape)
        return plain(ctx, x, *rest)

    monkeypatch.setattr(FoldedProduct, "forward", staticmethod(counted))
    adapted = [m for m in policy.model.modules() if isinstance(m, FoldedLinear)]
    kinds = {type(layer.base_layer) for layer in adapted}
    assert len(adapted) == 3 * (4 if kinds == {Conv1D} else 7)
    policy.model(input_ids=IDS)
    assert not multiplied  # only inside, and only where there are gradients or many rows
    with policy.folded():
        policy.model(input_ids=IDS)
    assert len(multiplied) == len(adapted)


@pytest.mark.parametrize("rows", [1, 5, 128, 129])
def test_few_rows_without_gradients_are_the_same_product(folder, rows):
    policy = tiny(folder)
    layer = next(module for module in policy.model.modules() if isinstance(module, FoldedLinear))
    x = torch.randn(rows, 1, layer.in_features, generator=torch.Generator().manual_seed(0))
    for seed in range(2):  # it follows the adapter
        perturb(policy, seed=seed)
        with torch.no_grad(), policy.folded():
            few = layer(x)
            assert (layer.packed is not None) == (rows <= 128)
            close(
                few,
                FoldedProduct.apply(x, layer.folded, layer.base_layer.bias, *layer._adapter()),
                atol=1e-5,
                rtol=1e-5,
            )
        assert layer.packed is None


def test_folded_the_reference_is_the_base_bit_for_bit(folder):
    policy = tiny(folder)
    with policy.reference(), torch.no_grad():
        expected = policy.model(input_ids=IDS).logits
        with policy.folded():
            assert torch.equal(policy.model(input_ids=IDS).logits, expected)
    with policy.folded(), torch.no_grad():
        before = policy.model(input_ids=IDS).logits
        with policy.reference():
            assert torch.equal(policy.model(input_ids=IDS).logits, expected)
        assert torch.equal(policy.model(input_ids=IDS).logits, before)
    assert (before - expected).abs().max() > 0.02


def test_nothing_of_it_is_saved_or_stays(folder):
    policy, plain = tiny(folder), tiny(folder, fold=False)
    with policy.folded():
        assert policy.state_dict().keys() == plain.state_dict().keys()
        assert policy.adapter_state().keys() == plain.adapter_state().keys()
    with pytest.raises(RuntimeError, match="inside"), policy.folded():
        raise RuntimeError("inside")
    assert all(layer.folded is None for layer in policy.model.modules() if isinstance(layer, FoldedLinear))
    assert torch.equal(policy.model(input_ids=IDS).logits, plain.model(input_ids=IDS).logits)
    for (name, tensor), other in zip(policy.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


def test_without_folding_and_in_lower_precision_the_adapter_is_computed_apart(folder):
    for settings in ({"fold": False}, {"dtype": "bfloat16"}):
        policy = tiny(folder, **settings)
        assert not any(isinstance(module, FoldedLinear) for module in policy.model.modules())
        with torch.no_grad(), policy.folded():
            inside = policy.model(input_ids=IDS).logits
        assert torch.equal(inside, policy.model(input_ids=IDS).logits)


@pytest.mark.parametrize("settings", [{}, {"dtype": "bfloat16", "fold": True}])
def test_in_lower_precision_and_under_autocast_gradients_arrive_too(folder, settings):
    _, exact = outputs(tiny(folder))
    policy = tiny(folder, **settings)
    with policy.folded(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=not settings):
        _, rounded = outputs(policy)
    for name, gradient in exact.items():
        if name != "input":
            assert rounded[name].dtype == torch.float32
            assert torch.cosine_similarity(rounded[name].flatten(), gradient.flatten(), 0) > 0.95


def test_an_adapted_embedding_is_left_to_peft(folder):
    name = "wte" if "n_embd" in (folder / "config.json").read_text() else "embed_tokens"
    target = "c_attn" if name == "wte" else "q_proj"
    policy = tiny(folder, targets=[name, target])
    logits = policy.model(input_ids=IDS).logits
    with policy.folded():
        close(policy.model(input_ids=IDS).logits, logits, rtol=0, atol=1e-5)
