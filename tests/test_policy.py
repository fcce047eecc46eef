import json
import shutil

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from rhythm.policy import Policy
from rhythm.seeding import seed_adapter
from tests.policies import WORDS, perturb, save_tiny_policy, word_tokenizer

close = torch.testing.assert_close
IDS = torch.tensor([[5, 17, 3, 40, 22, 9, 31, 12]])


def tiny(folder, **settings):
    seed_adapter(0)
    return Policy(str(folder), **({"rank": 4, "alpha": 8} | settings))


def base_of(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory):
    """Dropout in its config, which its layers apply without a module of its own."""
    return save_tiny_policy(tmp_path_factory.mktemp("llama"), "llama", attention_dropout=0.2)


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory):
    """Matrices transposed, tied embeddings, and dropout in its config."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(WORDS), n_embd=32, n_layer=3, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=1
    )
    assert config.attn_pdrop > 0
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_output_embeddings().weight *= 10
    model.save_pretrained(folder)
    word_tokenizer(WORDS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["tiny_folder", "llama_folder", "gpt2_folder"])
def folder(request):
    return request.getfixturevalue(request.param)


# ---- three models in one


def test_a_fresh_policy_is_the_base(folder):
    policy, base = tiny(folder), base_of(folder)
    close(logits(policy.model), logits(base), rtol=0, atol=1e-6)
    with policy.folded():  # few rows are summed in another order
        close(logits(policy.model), logits(base), rtol=0, atol=1e-5)


def test_the_reference_is_the_base_bit_for_bit_and_the_policy_comes_back(folder):
    policy = perturb(tiny(folder))
    before = logits(policy.model)
    with policy.reference():
        assert torch.equal(logits(policy.model), logits(base_of(folder)))
    assert torch.equal(logits(policy.model), before)
    assert (before - logits(base_of(folder))).abs().max() > 0.1


def test_the_reference_is_left_behind_by_an_error_too(tiny_folder):
    policy = perturb(tiny(tiny_folder))
    before = logits(policy.model)
    with pytest.raises(RuntimeError, match="inside"), policy.reference():
        raise RuntimeError("inside")
    assert torch.equal(logits(policy.model), before)


# ---- what is trained


def test_the_adapter_alone_is_trained(folder):
    policy = tiny(folder)
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert len(policy.adapter_parameters()) == len(trained) == len(policy.adapter_state())
    assert all(parameter.dtype == torch.float32 for parameter in policy.adapter_parameters())


def test_every_linear_layer_but_the_head_is_adapted(tiny_folder):
    names = {name.split(".")[-3] for name in tiny(tiny_folder).adapter_state()} | {
        name.split(".")[-2] for name in tiny(tiny_folder).adapter_state()
    }
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert linear <= names
    assert "lm_head" not in names


def test_training_mode_changes_nothing(folder):
    policy = perturb(tiny(folder))
    before = logits(policy.model)
    policy.train()
    assert torch.equal(logits(policy.model), before)


def test_dropout_of_the_adapter_is_refused(tiny_folder):
    with pytest.raises(ValueError, match=r"policy.lora_dropout=0.1: must be 0"):
        tiny(tiny_folder, lora_dropout=0.1)
    with pytest.raises(ValueError, match=r"policy.rank=0: must be at least 1"):
        tiny(tiny_folder, rank=0)


# ---- saved adapters


@pytest.fixture(scope="module")
def saved(tiny_folder, tmp_path_factory):
    """A perturbed policy of rank 3 and the folder it was saved in."""
    policy = perturb(tiny(tiny_folder, rank=3, alpha=9, targets=["q_proj", "up_proj"]))
    folder = tmp_path_factory.mktemp("adapter")
    policy.save_adapter(folder)
    return policy, folder


def changed(folder, target, **changes):
    """A copy of an adapter folder with other settings in its config."""
    shutil.copytree(folder, target)
    config = json.loads((target / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps(config | changes))
    return target


def test_a_saved_adapter_is_loadable_by_peft_alone(saved, tiny_folder):
    policy, folder = saved
    loaded = PeftModel.from_pretrained(base_of(tiny_folder), folder)
    close(logits(loaded), logits(policy.model), rtol=0, atol=1e-6)


def test_whoever_may_read_an_adapters_config_may_read_its_weights(saved):
    _, folder = saved
    modes = {file.suffix: file.stat().st_mode & 0o777 for file in folder.iterdir()}
    assert modes[".safetensors"] == modes[".json"]


def test_a_warm_start_is_the_saved_policy_and_trainable(saved, tiny_folder):
    policy, folder = saved
    warm = tiny(tiny_folder, adapter=str(folder), rank=16)  # the saved rank counts
    assert torch.equal(logits(warm.model), logits(policy.model))
    with warm.folded():
        close(logits(warm.model), logits(policy.model), rtol=0, atol=1e-5)
    shapes = [tuple(parameter.shape) for parameter in policy.adapter_parameters()]
    assert [tuple(parameter.shape) for parameter in warm.adapter_parameters()] == shapes
    assert len(shapes) == 2 * 2 * 3
    warm.train()
    warm.model(input_ids=IDS).logits.logsumexp(-1).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in warm.adapter_parameters())
    with warm.reference():
        assert torch.equal(logits(warm.model), logits(base_of(tiny_folder)))


def test_a_warm_start_leaves_the_adapters_dropout_out(saved, tiny_folder, tmp_path):
    policy, folder = saved
    warm = tiny(tiny_folder, adapter=str(changed(folder, tmp_path / "dropout", lora_dropout=0.3)))
    warm.train()
    assert torch.equal(logits(warm.model), logits(policy.model))


def test_a_warm_start_from_what_cannot_be_folded_is_refused(saved, tiny_folder, tmp_path):
    model = get_peft_model(base_of(tiny_folder), LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "dora")
    trained_bias = changed(saved[1], tmp_path / "bias", bias="all")
    for folder in (tmp_path / "dora", trained_bias):
        with pytest.raises(ValueError, match=f"policy.adapter={folder}: only plain LoRA adapters"):
            tiny(tiny_folder, adapter=str(folder))


def test_a_missing_adapter_is_refused(tiny_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"policy.adapter={tmp_path}: no adapter_config.json"):
        tiny(tiny_folder, adapter=str(tmp_path))


def test_adapter_state_goes_from_one_policy_to_another(tiny_folder):
    policy, other = perturb(tiny(tiny_folder)), tiny(tiny_folder)
    other.load_adapter_state(policy.adapter_state())
    assert torch.equal(logits(other.model), logits(policy.model))
    with other.folded():
        close(logits(other.model), logits(policy.model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [{"rank": 8}, {"targets": ["q_proj"]}])
def test_adapter_state_of_another_shape_is_refused(tiny_folder, settings):
    policy = tiny(tiny_folder)
    with pytest.raises(ValueError, match=r"does not fit this policy: \d+ tensors differ, first .*policy\.rank"):
        policy.load_adapter_state(tiny(tiny_folder, **settings).adapter_state())
    with pytest.raises(ValueError, match=r"saved, .* here"):
        policy.load_adapter_state({})


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "k_proj", "up_proj"]])
def test_an_adapter_with_tensors_that_are_missing_or_too_many_is_refused(tiny_folder, tmp_path, targets):
    tiny(tiny_folder, targets=["q_proj", "k_proj"]).save_adapter(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"target_modules": targets}))
    with pytest.raises(ValueError, match=r"does not fit this base: \d+ tensors differ, first"):
        tiny(tiny_folder, adapter=str(tmp_path))
