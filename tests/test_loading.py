"""Bases as they come from the hub: what ends them, what pads them, in which precision they are kept."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers
from hydra.utils import instantiate

from rhythm.callbacks.attention_signals import AttentionSignals
from rhythm.credit import AnchorCredit
from rhythm.folding import FoldedLinear
from rhythm.loading import quantized_loading
from rhythm.policy import Policy
from rhythm.seeding import seed_adapter
from tests.bases import KINDS, save_base
from tests.policies import WORDS, perturb, word_tokenizer
from tests.test_configs import composed, options
from tests.training import assert_same, countdown, moved, run

close = torch.testing.assert_close
TASK = {"template": "Using the numbers {numbers}, make an equation that equals {target}."}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of tiny bases by kind."""
    folder = tmp_path_factory.mktemp("bases")
    return {name: save_base(folder / name, name) for name in KINDS}


def loaded(folder, **settings):
    seed_adapter(0)
    return Policy(str(folder), **({"rank": 4, "alpha": 8} | settings))


@torch.no_grad()
def logits(model):
    return model(input_ids=torch.tensor([[5, 17, 3, 40, 22, 9, 31, 12]])).logits


# ---- ends and padding


@pytest.mark.parametrize(
    ("name", "settings", "ends", "pad"),
    [
        ("qwen3_base", {}, {"<|endoftext|>"}, "<|vision_pad|>"),
        ("qwen3_base", {"chat_template": True}, {"<|endoftext|>", "<|im_end|>"}, "<|vision_pad|>"),
        ("qwen3", {}, {"<|endoftext|>", "<|im_end|>"}, "<|vision_pad|>"),
        ("llama3", {}, {"<|end_of_text|>"}, "<|finetune_right_pad_id|>"),
        ("r1_distill_llama", {"chat_template": True}, {"<｜end▁of▁sentence｜>"}, "<|finetune_right_pad_id|>"),
    ],
)
def test_a_base_ends_where_its_files_say_and_pads_with_what_ends_nothing(bases, name, settings, ends, pad):
    policy = loaded(bases[name], **settings)
    assert set(policy.tokenizer.convert_ids_to_tokens(policy.stopping.token_ids)) == ends
    assert policy.tokenizer.pad_token == pad
    assert policy.tokenizer.padding_side == "left"


def test_a_tokenizer_without_padding_pads_with_the_end_on_the_left(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "unpadded")
    word_tokenizer([word.replace("<pad>", "spare") for word in WORDS], pad=None).save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"padding_side": "right"}))
    tokenizer = loaded(folder).tokenizer
    encoded = tokenizer(["my answer is", "so"], padding=True)
    end = tokenizer.eos_token_id
    assert encoded["input_ids"] == [[WORDS.index(w) for w in ("my", "answer", "is")], [end, end, WORDS.index("so")]]


def test_a_tokenizer_without_an_end_is_refused(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "endless")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": None}))
    with pytest.raises(ValueError, match="names no end-of-sequence token"):
        loaded(folder)


# ---- training them


STAND_INS = {"deepseek_r1_distill_llama_8b": "r1_distill_llama", "llama3_1_8b": "llama3", "llama3_2_3b": "llama3"}
STAND_INS |= {f"qwen3_{size}": "qwen3_base" for size in ("0_6b", "1_7b", "4b", "8b")}


@pytest.mark.parametrize("name", STAND_INS)
def test_a_policys_config_loads_a_base_of_its_architecture(bases, name):
    policy = instantiate(composed(f"policy={name}", f"policy.path={bases[STAND_INS[name]]}").policy, _convert_="all")
    assert policy.model.get_base_model().dtype == torch.bfloat16
    assert (policy.chat is not None) == ("distill" in name)
    assert not any(isinstance(module, FoldedLinear) for module in policy.model.modules())  # bfloat16


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_base_trains_with_anchor_credit(bases, name):
    chat = KINDS[name].template is not None
    policy = loaded(bases[name], dtype="bfloat16", activation_checkpointing=True, chat_template=chat)
    assert {parameter.dtype for parameter in policy.adapter_parameters()} == {torch.float32}
    assert policy.model.get_input_embeddings().weight.dtype == torch.bfloat16
    base = policy.fingerprint()
    settings = {"prompts": 2, "max_completion_tokens": 20, "temperature": 0.9}
    module, watcher = run(
        policy=policy,
        task=countdown(**TASK),
        credit=AnchorCredit(),
        callbacks=[AttentionSignals(horizon=(2, 10))],
        **settings,
    )
    assert max(float(step.abs().max()) for step in moved(module, watcher).values()) > 1e-4
    assert watcher.metrics["credit/amplified"] > 0.1
    assert watcher.metrics["clip_ratio/low_mean"] == 0  # the first ratio is 1
    assert policy.fingerprint() == base


def test_checkpointing_activations_keeps_less_and_changes_nothing(bases):
    steps, kept = [], []
    for checkpointing in (False, True):
        policy = perturb(loaded(bases["llama3"], activation_checkpointing=checkpointing))
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: (sizes.append(x.numel()), x)[1], _same):
            module, watcher = run(policy=policy, task=countdown(**TASK), prompts=2, max_completion_tokens=20)
        steps.append(moved(module, watcher))
        kept.append(sum(sizes))
    assert_same(*steps)
    assert kept[1] < kept[0] / 2


def _same(x):
    return x


def test_a_stop_string_ends_completions_in_training(bases):
    policy = loaded(bases["qwen3_base"], stop_strings=["e"])
    _, watcher = run(policy=policy, task=countdown(**TASK), prompts=2, max_completion_tokens=40)
    ended = [text for text, cut in zip(watcher.rollout.completions, watcher.rollout.truncated, strict=True) if not cut]
    assert len(ended) > 2
    assert all("e" in text for text in ended)
    assert not any("e" in text for text in watcher.rollout.completions if text not in ended)


# ---- every weight


def test_full_training_moves_every_weight_and_keeps_the_reference(bases, tmp_path):
    policy = loaded(bases["llama3"], full=True, chat_template=False)
    before = logits(policy.model)
    module, watcher = run(policy=policy, task=countdown(**TASK), prompts=2, max_completion_tokens=20, lr=0.1)
    steps = moved(module, watcher)
    assert len(steps) == len(list(policy.model.parameters()))
    after = logits(policy.model)
    assert (after - before).abs().max() > 1e-3
    with policy.reference():
        assert torch.equal(logits(policy.model), before)
    assert torch.equal(logits(policy.model), after)
    with policy.folded():
        assert torch.equal(logits(policy.model), after)
    policy.check_base(loaded(bases["llama3"], full=True).fingerprint())

    policy.save_adapter(tmp_path / "whole")
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole", attn_implementation="sdpa")
    assert torch.equal(logits(alone), after)
    warm = loaded(bases["llama3"], full=True, adapter=str(tmp_path / "whole"))
    assert torch.equal(logits(warm.model), after)
    other = loaded(bases["llama3"], full=True)
    other.load_adapter_state(policy.adapter_state())
    assert torch.equal(logits(other.model), after)


def test_full_training_starts_from_whole_models_alone(bases, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"policy.adapter=.*: no config.json there; with policy.full=true"):
        loaded(bases["llama3"], full=True, adapter=str(tmp_path))
    with pytest.raises(ValueError, match=r"policy.adapter=.*: not a model of the same shape as policy.path"):
        loaded(bases["llama3"], full=True, adapter=str(bases["qwen3"]))


# ---- what is refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"full": True, "dtype": "bfloat16"}, r"policy.full=true with policy.dtype=bfloat16: weights .* in float32"),
        ({"full": True, "quantization": "4bit"}, r"policy.full=true with policy.quantization=4bit"),
        ({"full": True, "fold": True}, r"policy.fold=true needs a LoRA adapter on a base"),
        ({"quantization": "4bit"}, r"policy.quantization=4bit needs a CUDA device, and there is none here"),
        ({"quantization": "8bit"}, r"policy.quantization=8bit: use 4bit, or null for none"),
        ({"dtype": "float23"}, r"policy.dtype=float23: use float32, bfloat16 or float16"),
        ({"system_prompt": "Think."}, r"policy.system_prompt is a turn .*: add policy.chat_template=true"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense(bases, settings, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=words):
        loaded(bases["llama3"], **settings)


def test_four_bits_are_nf4_on_the_device_of_each_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=r"needs bitsandbytes: pip install -e '.\[quantization\]'"):
        quantized_loading("4bit", torch.bfloat16)
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(__spec__=SimpleNamespace()))
    monkeypatch.setenv("LOCAL_RANK", "3")
    loading = quantized_loading("4bit", torch.bfloat16)
    assert loading["device_map"] == {"": 3}
    assert loading["quantization_config"].bnb_4bit_quant_type == "nf4"
    assert loading["quantization_config"].bnb_4bit_compute_dtype == torch.bfloat16


def test_every_named_policy_has_a_stand_in():
    assert set(options("policy")) - {"lora", "local", "tiny_countdown"} == set(STAND_INS)


def test_an_unknown_embedded_policy_is_refused_with_what_there_is():
    with pytest.raises(
        ValueError, match=r"policy.path=embedded:huge: no such embedded policy; there is .*tiny_countdown"
    ):
        Policy("embedded:huge")


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"policy.path=.*nowhere: there is no such folder"):
        Policy(str(tmp_path / "nowhere"))
