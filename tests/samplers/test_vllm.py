"""Sampling by a server that speaks vLLM's interface: what it samples is the policy's, and nothing stale."""

import re
import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from rhythm import cli, runs
from rhythm.callbacks.observer import RolloutObserver
from rhythm.data import collate_prompts
from rhythm.objective import Objective
from rhythm.policy import Policy
from rhythm.samplers import LocalSampler, VLLMSampler
from rhythm.samplers.vllm import adapter_name, read_completions
from rhythm.scoring import score
from tests.policies import perturb
from tests.samplers.server import Server
from tests.training import EMBEDDED, SteppedCredit, assert_same, countdown, moved, naive_gradient, run

TASK = countdown()
SHORT = {"max_completion_tokens": 30}


@pytest.fixture
def serve():
    """Starts servers, and ends them."""
    servers = []

    def start(**settings):
        servers.append(Server(**settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def a_policy(**settings):
    return perturb(Policy(EMBEDDED, rank=4, alpha=8, **settings))


def some_prompts(policy, count=2):
    return collate_prompts(TASK, policy.tokenizer, list(TASK.train_problems())[:count], policy.chat)


def sampled(sampler, policy, count=2, **settings):
    return sampler.sample(
        policy, some_prompts(policy, count), **({"group_size": 3, "max_completion_tokens": 12} | settings)
    )


class Diary(RolloutObserver):
    """Keeps every iteration's rollout, numbers and adapter."""

    def __init__(self):
        self.rollouts, self.metrics, self.names = [], [], []

    def scored(self, module, rollout):
        self.names.append(adapter_name(module.policy))
        return {}

    def learned(self, module, rollout):
        self.rollouts.append(rollout)
        self.metrics.append(dict(module.metrics))


# ---- in training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three iterations against a server; the server is ended."""
    server, diary, folder = Server(), Diary(), tmp_path_factory.mktemp("adapters") / "sampler"
    run(
        sampler=VLLMSampler(server.url, folder, patience=2),
        callbacks=[diary],
        iterations=3,
        max_completion_tokens=24,
        optimizer=torch.optim.AdamW,
        lr=1e-2,
    )
    server.close()
    return server, diary, folder


def test_the_adapter_is_swapped_and_the_cache_reset_before_anything_is_sampled(trained):
    server, diary, folder = trained
    first, second, third = diary.names
    assert len({first, second, third}) == 3
    expected = [f"load {first}", "reset", *4 * [f"complete {first}"]]
    for before, after in ((first, second), (second, third)):
        expected += [f"load {after}", "reset", f"unload {before}", *4 * [f"complete {after}"]]
    assert server.events == expected
    assert server.adapters == {third: str(folder / third)}
    assert [path.name for path in folder.iterdir()] == [third]


def test_the_tokens_of_a_server_in_float32_have_the_probabilities_of_the_scoring_pass(trained):
    _, diary, _ = trained
    for rollout in diary.rollouts:
        difference = (rollout.sampler_logps - rollout.old_logps)[rollout.completion_mask]
        assert 0 < difference.abs().max() <= 1e-4
        assert rollout.sampler_logps[rollout.completion_mask].mean() < -0.1  # not all are sure
        torch.testing.assert_close(
            rollout.importance_weights, torch.ones_like(rollout.importance_weights), atol=1e-4, rtol=0
        )


def test_how_far_the_sampler_was_is_logged(trained):
    _, diary, _ = trained
    for metrics in diary.metrics:
        assert 0 < metrics["sampling/sampling_logp_difference/mean"] < metrics["sampling/sampling_logp_difference/max"]
        assert metrics["sampling/sampling_logp_difference/max"] <= 1e-4
        assert metrics["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-5)
        assert metrics["sampling/importance_sampling_ratio/truncated"] == 0
        assert 0 <= metrics["sampling/kl"] < 1e-8


def test_an_update_weighs_the_policy_loss_of_each_token_by_its_importance_and_not_the_penalty(serve, tmp_path):
    sampler = VLLMSampler(serve(flatness=1.2).url, tmp_path, importance_cap=1.02)
    module, watcher = run(credit=SteppedCredit(), objective=Objective(beta=0.5), sampler=sampler, prompts=2, **SHORT)
    rollout = watcher.rollout
    weights = rollout.importance_weights[rollout.completion_mask]
    truncated = float((weights == weights.max()).float().mean())
    assert float(weights.max()) == pytest.approx(1.02)
    assert weights.min() < 0.8
    assert 0.01 < truncated < 0.9
    assert watcher.metrics["sampling/importance_sampling_ratio/truncated"] == pytest.approx(truncated)
    assert watcher.metrics["sampling/kl"] > 1e-3
    assert_same(moved(module, watcher), naive_gradient(rollout, beta=0.5))
    uncorrected = naive_gradient(type(rollout)(**vars(rollout) | {"importance_weights": None}), beta=0.5)
    with pytest.raises(AssertionError, match="not close"):
        assert_same(moved(module, watcher), uncorrected)


def test_weights_of_one_are_the_plain_update_bit_for_bit():
    class One(LocalSampler):
        def importance_weights(self, rollout):
            return torch.ones_like(rollout.old_logps)

    plain, weighed = moved(*run(**SHORT)), moved(*run(sampler=One(), **SHORT))
    assert all(torch.equal(plain[name], weighed[name]) for name in plain)


def test_without_a_cap_nothing_is_corrected_and_the_distance_is_told(serve, tmp_path):
    _, watcher = run(sampler=VLLMSampler(serve().url, tmp_path, importance_cap=None), max_completion_tokens=8)
    assert watcher.rollout.importance_weights is None
    assert watcher.metrics["sampling/sampling_logp_difference/max"] <= 1e-4
    assert "sampling/importance_sampling_ratio/mean" not in watcher.metrics


def test_a_run_of_the_entry_point_sends_its_adapters_in_its_folder(serve, tmp_path, monkeypatch):
    server, folder = serve(), tmp_path / "run"
    small = ["iterations=1", "prompts_per_iteration=2", "group_size=2", "max_completion_tokens=4", "eval_every=9"]
    small += ["callbacks.evaluation.problems=2", "~callbacks.inspection", "~callbacks.export", "~callbacks.progress"]
    words = ["train.py", "sampler=vllm", f"sampler.url={server.url}", f"output_dir={folder}", *small]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setenv(runs.SHARED, "")  # so that what the run sets is taken back
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    cli.main(train.train, "train")
    ((name, sent),) = server.adapters.items()
    assert sent == str(folder / "sampler" / name)
    assert server.events == [f"load {name}", "reset", *2 * [f"complete {name}"]]  # and none of the evaluations
    logged = EventAccumulator(str(folder)).Reload().Scalars("sampling/importance_sampling_ratio/mean")
    assert [event.step for event in logged] == [1]


# ---- what is sampled


def test_an_adapter_that_was_not_sent_is_refused_whatever_is_loaded(serve, tmp_path):
    policy, sampler = a_policy(), VLLMSampler(serve().url, tmp_path)
    sampler.prepare(policy)
    sampled(sampler, policy)
    perturb(policy, seed=1)
    with pytest.raises(ValueError, match=r"The model `rhythm-\w+` does not exist.*goes on with ckpt_path=last"):
        sampled(sampler, policy)


def test_an_adapter_of_the_same_name_from_another_folder_is_not_taken_for_it(serve, tmp_path):
    server, policy = serve(), a_policy()
    name = adapter_name(policy)
    VLLMSampler(server.url, tmp_path / "theirs").prepare(policy)
    policy.save_adapter(tmp_path / "mine" / name)
    VLLMSampler(server.url, tmp_path / "mine").prepare(policy)
    assert server.events == [f"load {name}", "reset", f"unload {name}", f"load {name}", "reset"]
    assert server.adapters == {name: str(tmp_path / "mine" / name)}


def test_a_server_that_was_started_again_between_swap_and_sampling_is_told_and_taken_up(tmp_path):
    policy, first = a_policy(), Server()
    sampler = VLLMSampler(first.url, tmp_path)
    sampler.prepare(policy)
    first.close()
    second = Server(port=first.http.server_port)
    try:
        with pytest.raises(ValueError, match=r"Was the server started again, .*goes on with ckpt_path=last") as told:
            sampled(sampler, policy)
        assert "\n" not in str(told.value)
        sampler.prepare(policy)
        assert len(sampled(sampler, policy).completions) == 6
    finally:
        second.close()


def test_nothing_computed_with_an_earlier_adapter_is_used_again(serve, tmp_path):
    server, policy = serve(), a_policy()
    sampler = VLLMSampler(server.url, tmp_path)
    for seed, hits in ((1, 0), (2, 0), (2, 2)):  # the last is the same adapter again, whose prompts are still there
        perturb(policy, seed=seed) if hits == 0 else None
        sampler.prepare(policy)
        before = server.hits
        rollout = sampled(sampler, policy, temperature=1.0)
        assert server.hits - before == hits
        with policy.folded():
            logps, _ = score(policy.model, rollout, micro_batch_size=8, temperature=1.0)
        difference = (logps - rollout.sampler_logps)[rollout.completion_mask]
        assert difference.abs().max() <= 1e-4


def test_an_adapter_that_did_not_move_is_neither_written_nor_sent_again(serve, tmp_path):
    server, policy = serve(), a_policy()
    for _ in range(2):  # the second as after a resume
        VLLMSampler(server.url, tmp_path).prepare(policy)
    assert server.events == [f"load {adapter_name(policy)}", "reset"]


def test_what_earlier_processes_and_other_runs_left_is_taken_away(serve, tmp_path):
    server, policy = serve(), a_policy()
    VLLMSampler(server.url, tmp_path / "mine").prepare(policy)
    VLLMSampler(server.url, tmp_path / "theirs").prepare(perturb(policy, seed=2))
    server.adapters["other"] = server.adapters[adapter_name(policy)]  # of no run
    (tmp_path / "mine" / ".rhythm-half").mkdir()
    VLLMSampler(server.url, tmp_path / "mine").prepare(perturb(policy, seed=1))
    assert list(server.adapters) == ["other", adapter_name(policy)]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [adapter_name(policy)]


def test_the_name_of_an_adapter_tells_its_tensors_and_their_scale():
    policy, twin, scaled = a_policy(), a_policy(), perturb(Policy(EMBEDDED, rank=4, alpha=16))
    twin.load_adapter_state(policy.adapter_state())
    scaled.load_adapter_state(policy.adapter_state())
    assert adapter_name(policy) == adapter_name(twin) != adapter_name(scaled)
    with torch.no_grad():
        next(iter(twin.adapter_parameters())).view(-1)[-1] += 1e-7
    assert adapter_name(policy) != adapter_name(twin)


def test_layers_with_a_scale_of_their_own_keep_it_and_the_name_tells_it(serve, tmp_path):
    policy = a_policy()
    name, config = adapter_name(policy), policy.model.peft_config["default"]
    config.alpha_pattern = {"q_proj": 40}
    policy.save_adapter(tmp_path / "start")
    scaled, sampler = Policy(EMBEDDED, adapter=str(tmp_path / "start")), VLLMSampler(serve().url, tmp_path / "sampler")
    assert adapter_name(scaled) != name
    sampler.prepare(scaled)
    rollout = sampled(sampler, scaled)
    logps, _ = score(scaled.model, rollout, micro_batch_size=8, temperature=1.0)
    assert (logps - rollout.sampler_logps)[rollout.completion_mask].abs().max() <= 1e-4


def test_completions_are_the_servers_tokens_up_to_and_with_the_end(serve, tmp_path):
    server, policy = serve(), a_policy()
    sampler = VLLMSampler(server.url, tmp_path)
    sampler.prepare(policy)
    rollout = sampled(sampler, policy, max_completion_tokens=142)
    mask, eos = rollout.completion_mask, policy.tokenizer.eos_token_id
    rows = [ids[kept].tolist() for ids, kept in zip(rollout.completion_ids, mask, strict=True)]
    assert sorted(rows) == sorted(server.sent)
    assert 0 < rollout.truncated.sum() < len(rows)
    for row, truncated in zip(rows, rollout.truncated.tolist(), strict=True):
        assert (len(row) == 142 and eos not in row) if truncated else row.index(eos) == len(row) - 1
    prompts = {tuple(request["prompt"]) for request in server.requests}
    for i, row in enumerate(rows):
        whole = rollout.input_ids[i][rollout.attention_mask[i]].tolist()
        assert whole[rollout.prompt_lengths[i] :] == row
        assert tuple(whole[: rollout.prompt_lengths[i]]) in prompts
        assert rollout.completions[i] == policy.tokenizer.decode(row, skip_special_tokens=True)
    assert (rollout.completion_ids[~mask] == policy.tokenizer.pad_token_id).all()
    assert (rollout.sampler_logps[~mask] == 0).all()


def test_a_stop_string_ends_a_completion_and_belongs_to_it(serve, tmp_path):
    policy, sampler = a_policy(stop_strings=["="]), VLLMSampler(serve().url, tmp_path)
    sampler.prepare(policy)
    rollout = sampled(sampler, policy, max_completion_tokens=60)
    assert not rollout.truncated.any()
    assert all(text.count("=") == 1 and text.endswith("=") for text in rollout.completions)


def test_every_completion_has_a_seed_of_its_own_and_the_same_seed_gives_the_same(serve, tmp_path):
    server, policy = serve(), a_policy()
    sampler = VLLMSampler(server.url, tmp_path)
    sampler.prepare(policy)
    first, again, other = (sampled(sampler, policy, seed=seed) for seed in (2**63 - 1, 2**63 - 1, 7))
    assert torch.equal(first.completion_ids, again.completion_ids)
    assert not torch.equal(first.completion_ids, other.completion_ids)
    seeds = [request["seed"] + i for request in server.requests[:2] for i in range(request["n"])]
    assert len(set(seeds)) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_another_temperature_needs_the_probabilities_of_that_temperature(serve, tmp_path):
    policy = a_policy()
    sampler = VLLMSampler(serve().url, tmp_path)
    sampler.prepare(policy)
    with pytest.raises(ValueError, match=r"temperature=0.5: .* gives raw_logprobs.*--logprobs-mode processed_logprobs"):
        sampled(sampler, policy, temperature=0.5)
    sampler = VLLMSampler(serve(mode="processed_logprobs").url, tmp_path)
    sampler.prepare(policy)
    rollout = sampled(sampler, policy, temperature=0.5)
    logps, _ = score(policy.model, rollout, micro_batch_size=8, temperature=0.5)
    assert (logps - rollout.sampler_logps)[rollout.completion_mask].abs().max() <= 1e-4


# ---- what goes wrong


@pytest.mark.parametrize(
    ("server", "settings", "line"),
    [
        ({"name": "other"}, {"model": "tiny"}, r"sampler.model=tiny: .* serves other; start it with the base"),
        ({"lora": False}, {}, r"takes no adapter \(.*LoRA is not enabled.\); start it with --enable-lora"),
        ({"updating": False}, {}, r"takes no adapter \(Not Found\); .* VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ({"rank": 2}, {}, r"rank is greater than max_lora_rank 2.*--max-lora-rank 4"),
        ({"dev": False}, {}, r"sampler.url=.*: Not Found to /server_info; start .* with VLLM_SERVER_DEV_MODE=1"),
        ({"mode": "raw_logits"}, {}, r"temperature=1: .* gives raw_logits; .*--logprobs-mode processed_logprobs"),
        ({"busy": 99}, {}, r"others have used the prefix cache for 1 s; a server is for one run at a time"),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_a_server_that_will_not_do_is_told_in_one_line_and_leaves_nothing(serve, tmp_path, server, settings, line):
    sampler = VLLMSampler(serve(**server).url, tmp_path / "sampler", patience=1, **settings)
    with pytest.raises((ValueError, OSError), match=line) as told:
        sampler.prepare(a_policy())
    assert "\n" not in str(told.value)
    assert not (tmp_path / "sampler").exists()


def test_the_base_goes_by_its_name_or_its_folder(serve, tmp_path):
    policy = a_policy()
    VLLMSampler(serve(name="renamed").url, tmp_path).prepare(policy)  # from the same folder
    policy.path = "Qwen/Qwen3-4B-Base"
    with pytest.raises(ValueError, match=r"policy.path=Qwen/Qwen3-4B-Base: .* serves renamed; .* say sampler.model="):
        VLLMSampler(serve(name="renamed").url, tmp_path).prepare(policy)
    VLLMSampler(serve(name="renamed").url, tmp_path, model="renamed").prepare(policy)


def test_a_folder_that_the_server_does_not_see_is_named(serve, tmp_path, monkeypatch):
    server = serve()
    load = server.load
    monkeypatch.setattr(server, "load", lambda lora_name, lora_path: load(lora_name, f"/elsewhere{lora_path}"))
    with pytest.raises(ValueError, match=rf"sampler.folder={re.escape(str(tmp_path))}: .* sees under the same path"):
        VLLMSampler(server.url, tmp_path).prepare(a_policy())


def test_completions_that_are_cut_short_of_their_limit_are_no_truncated_ones(serve, tmp_path):
    policy, sampler = a_policy(), VLLMSampler(serve(length=20).url, tmp_path)
    sampler.prepare(policy)
    with pytest.raises(ValueError, match=r"ended by length, are no completion of 40; raise --max-model-len"):
        sampled(sampler, policy, max_completion_tokens=40)


def test_a_connection_that_fails_is_tried_again_and_a_lost_answer_does_no_harm(serve, tmp_path):
    server, policy = serve(), a_policy()
    sampler = VLLMSampler(server.url, tmp_path, patience=5)

    def losing(call):
        def lost(**body):  # does it, and closes the connection
            setattr(server, call.__name__, call)
            server.dropped = 1
            return call(**body)

        setattr(server, call.__name__, lost)

    losing(server.load)
    sampler.prepare(policy)
    losing(server.unload)
    sampler.prepare(perturb(policy, seed=1))
    server.dropped = 2
    rollout = sampled(sampler, policy)
    assert [event.split()[0] for event in server.events[:5]] == ["load", "reset", "load", "reset", "unload"]
    assert list(server.adapters) == [adapter_name(policy)]
    assert len(rollout.completions) == 6


def test_no_server_is_told_after_the_patience_that_was_asked_for(serve, tmp_path):
    server = Server()
    server.close()
    sampler = VLLMSampler(server.url, tmp_path, patience=0.3)
    with pytest.raises(ConnectionError, match=rf"sampler.url={server.url}: no answer to /v1/models .*experiments/vllm"):
        sampler.prepare(a_policy())


def test_what_is_no_vllm_server_is_told(serve, tmp_path):
    with pytest.raises(ValueError, match=r"sampler.url=.*/v1: Not Found to /v1/models: no vLLM server"):
        VLLMSampler(f"{serve().url}/v1/", tmp_path).prepare(a_policy())


def test_every_weight_cannot_be_sent(tiny_folder, tmp_path):
    with pytest.raises(ValueError, match=r"policy.full=true: .* use sampler=local"):
        VLLMSampler("http://127.0.0.1:1", tmp_path).prepare(Policy(str(tiny_folder), full=True))


def test_a_base_in_4_bits_is_not_the_servers(tmp_path):
    policy = a_policy()
    policy.quantized = True
    with pytest.raises(ValueError, match=r"policy.quantization=4bit: .* use sampler=local"):
        VLLMSampler("http://127.0.0.1:1", tmp_path).prepare(policy)


CHOICE = {"index": 0, "token_ids": [5, 1], "logprobs": {"token_logprobs": [-1.0, -2.0]}, "finish_reason": "stop"}


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ([], "an answer without tokens or their log-probabilities"),
        ({"model": "a"}, "an answer without tokens or their log-probabilities"),
        ({"choices": [CHOICE | {"logprobs": None}]}, "an answer without tokens or their log-probabilities"),
        ({"choices": [CHOICE | {"token_ids": None}]}, "an answer without tokens or their log-probabilities"),
        ({"choices": [CHOICE]}, "1 completions by a, not 2 by a"),
        ({"choices": [CHOICE, CHOICE]}, "2 completions by a, not 2 by a"),
        ({"model": "b", "choices": [CHOICE, CHOICE | {"index": 1}]}, "2 completions by b, not 2 by a"),
        ({"choices": [CHOICE, CHOICE | {"index": 1, "token_ids": [1]}]}, "1 tokens with 2 log-probabilities"),
    ],
)
def test_an_answer_that_lacks_something_is_told_in_one_line(answer, line):
    answer = {"model": "a"} | answer if isinstance(answer, dict) else answer
    with pytest.raises(ValueError, match=line) as told:
        read_completions(answer, {"model": "a", "n": 2, "max_tokens": 9})
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"url": "localhost:8000"}, "sampler.url=localhost:8000: takes an address like http://"),
        ({"importance_cap": 0.5}, "sampler.importance_cap=0.5: must be at least 1, or null"),
        ({"patience": 0}, "sampler.patience=0: must be above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_their_keys(tmp_path, settings, line):
    with pytest.raises(ValueError, match=line):
        VLLMSampler(**{"url": "http://127.0.0.1:1", "folder": tmp_path} | settings)
