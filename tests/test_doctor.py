"""What every start looks at: each check finds the fault that it is for, and a healthy run is left as it was."""

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from rhythm import doctor
from rhythm.callbacks.attention_signals import AttentionSignals
from rhythm.callbacks.startup import StartupCheck
from rhythm.data import collate_prompts
from rhythm.policy import Policy
from rhythm.tasks.countdown import Countdown
from tests.policies import perturb
from tests.test_configs import composed
from tests.training import EMBEDDED, EasyCountdown, countdown, moved, run


@pytest.fixture
def policy(tiny_folder):
    return perturb(Policy(str(tiny_folder), rank=4))


@pytest.fixture
def rollout(policy):
    problems = [{"numbers": [3, 4], "target": 12}, {"numbers": [1, 2, 3], "target": 6}, {"numbers": [9], "target": 9}]
    task = countdown()
    return doctor.small_rollout(collate_prompts(task, policy.tokenizer, problems), policy.tokenizer)


def optimizer(parameters):
    return torch.optim.SGD(parameters, lr=1.0)


def test_a_small_rollout_is_two_prompts_followed_by_their_own_last_tokens(rollout, policy):
    texts = policy.tokenizer.batch_decode(rollout.input_ids)
    assert texts[0].startswith("numbers : 3 4 target : 12 . numbers : 3 4 target : 12 .")
    assert texts[1] == "numbers : 1 2 3 target : 6 . : 1 2 3 target : 6 ."
    assert rollout.completion_mask.tolist() == [[True] * 8] * 2


def test_the_adapter_is_trained_saved_and_in_the_optimizer(policy):
    count = len(policy.adapter_parameters())
    assert f"in {count} tensors" in doctor.check_adapter(policy, optimizer(policy.adapter_parameters()))
    with pytest.raises(ValueError, match=rf"optimizer does not hold 1 of the adapter's {count} tensors, first .*lora_"):
        doctor.check_adapter(policy, optimizer(policy.adapter_parameters()[1:]))
    everything = optimizer(policy.parameters())
    policy.model.get_output_embeddings().weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"outside of the adapter would be trained .* no checkpoint holds .*lm_head"):
        doctor.check_adapter(policy, everything)


def test_an_adapter_that_was_loaded_for_inference_is_found_out(policy):
    for parameter in policy.adapter_parameters()[:3]:
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match=r"^the adapter is not trained: 3 of its tensors require no gradient, .*lora_"):
        doctor.check_adapter(policy, optimizer(policy.parameters()))


def test_the_reference_is_the_base(policy, rollout, monkeypatch):
    assert "difference 0 nats" in doctor.check_reference(policy, rollout)
    monkeypatch.setattr(policy, "reference", nullcontext)
    with pytest.raises(ValueError, match=r"^the reference is not the base: log-probabilities differ by [0-9]"):
        doctor.check_reference(policy, rollout)


def test_the_first_ratio_is_one_and_the_adapter_gets_a_gradient(policy, rollout):
    assert "the adapter gets a gradient" in doctor.check_first_update(policy, rollout, 0.7, exact=True)
    assert not any(parameter.grad is not None for parameter in policy.parameters())
    assert not policy.training
    for module in policy.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    with pytest.raises(ValueError, match=r"^the first ratio is off 1 by [0-9.e-]+ in float32, more than [0-9.e-]+: "):
        doctor.check_first_update(policy, rollout, 1.0, exact=True)
    assert re.search(r"largest deviation [0-9.]*[1-9]", doctor.check_first_update(policy, rollout, 1.0, exact=False))


def test_rounding_of_improbable_tokens_is_no_fault(rollout):
    """Far from its base a policy finds some tokens so improbable that rounding alone moves their ratio."""
    policy = perturb(Policy(EMBEDDED), scale=0.3)
    assert "the first ratio is 1" in doctor.check_first_update(policy, rollout, 1.0, exact=True)
    for module in policy.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.01
    with pytest.raises(ValueError, match=r"^the first ratio is off 1 by "):
        doctor.check_first_update(policy, rollout, 1.0, exact=True)


def test_a_gradient_that_is_lost_on_the_way_is_found_out(policy, rollout):
    policy.model.get_output_embeddings().register_forward_hook(lambda layer, inputs, output: output.detach())
    with pytest.raises(ValueError, match=r"^no gradient reaches the adapter"):
        doctor.check_first_update(policy, rollout, 1.0, exact=True)


class Generous(Countdown):
    def reward(self, problem, completion):
        return 1.0


class Untold(EasyCountdown):
    def known_answers(self):
        return []


def test_a_verifier_that_gives_a_wrong_answer_its_reward_is_found_out():
    assert doctor.check_verifier(Countdown()) == "5 known answers get the rewards that they should"
    assert doctor.check_verifier(countdown(Untold)).startswith("not tried")
    line = "Generous gives '<answer>(2 + 3) * 4</answer>' a reward of 1 for {'numbers': [2, 3, 4], 'target': 14}, "
    with pytest.raises(ValueError, match=f"^{re.escape(line)}where 0 is right"):
        doctor.check_verifier(Generous())


def test_the_layers_that_are_read(policy):
    readers = [AttentionSignals(layers=[0, 2]), AttentionSignals(layers=[1])]
    assert doctor.check_layers(policy.model, readers) == "0, 1, 2 of 0 to 2 were reached"
    assert doctor.check_layers(policy.model, []).startswith("none is read")


def test_a_disk_without_room_for_the_checkpoints_is_found_out(tmp_path, policy):
    assert "and a run writes about 0.1" in doctor.check_disk(tmp_path, policy.adapter_state())
    huge = {"lora": torch.empty(10**14, device="meta")}
    with pytest.raises(ValueError, match=rf"^output_dir={tmp_path}: .* a run writes about 5200000.1; make room"):
        doctor.check_disk(tmp_path, huge)


def test_tags_that_did_not_reach_the_disk_are_found_out(tmp_path):
    board = TensorBoardLogger(str(tmp_path), name="", version="")
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("reward", 1.0, 1)
    assert doctor.check_tags([board], ["reward"]) == "1 are in TensorBoard"
    with pytest.raises(ValueError, match=rf"^1 tags did not reach TensorBoard's file in {tmp_path}, first loss;"):
        doctor.check_tags([board], ["reward", "loss"])
    assert doctor.check_tags([], ["reward"]).startswith("not looked for")


def test_a_start_that_is_looked_at_trains_as_one_that_is_not(tmp_path, capsys):
    settings = {"task": countdown(Untold), "iterations": 2, "max_completion_tokens": 30}
    plain = moved(*run(**settings))
    looked = moved(*run(**settings, callbacks=[StartupCheck(str(tmp_path))]))
    assert all(torch.equal(plain[name], looked[name]) for name in plain)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("given", "beside"), [("somewhere/run", "somewhere"), (None, "logs")])
def test_a_rehearsal_is_one_short_iteration_in_a_folder_that_is_gone_afterwards(given, beside, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = composed("experiment=anchor", "doctor=true")
    cfg.output_dir = given
    with doctor.rehearsal(cfg) as small:
        assert Path(small.output_dir).parent == Path(beside)
        assert Path(small.output_dir).is_dir()
        assert (small.iterations, small.group_size, small.max_completion_tokens) == (1, 2, 32)
        assert small.callbacks.startup.verbose
        assert small.policy == cfg.policy
        assert small.credit == cfg.credit
    assert not list(Path(beside).iterdir())
    cfg.ckpt_path = "last"
    with pytest.raises(ValueError, match="doctor=true looks at a run from its beginning; leave ckpt_path out"):
        doctor.rehearsal(cfg).__enter__()
