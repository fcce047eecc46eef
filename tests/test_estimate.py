"""The estimate against counts by hand, and against the same computation on real tensors."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig

from rhythm.allocations import Allocations
from rhythm.estimate import Workload, estimate, learn, report, workload
from rhythm.objective import Objective
from rhythm.policy import Policy
from tests.test_configs import composed

SETTINGS = {"rows": 8, "sampled": 8, "prefilled": 2, "micro_batch": 4, "prompt": 8, "completion": 24}
WORK = Workload(**SETTINGS, layers=0, precision="32-true", devices=1)


def estimated(folder, *overrides, **changes):
    policy = composed("policy=local", f"policy.path={folder}", *overrides).policy
    return estimate(policy, Workload(**vars(WORK) | changes), Objective())


def test_bytes_are_counted_while_they_live():
    with FakeTensorMode(), Allocations() as memory:
        first = torch.zeros(1000)
        peaks = {}
        with memory.phase(peaks, "more"):
            second = first + 1
            assert second.view(10, 100).shape == (10, 100)  # a view is no memory
            del second
        assert (memory.now, peaks) == (4000, {"more": 4000})


def test_weights_and_moments_are_those_of_the_policy(tiny_folder):
    policy, found = Policy(str(tiny_folder)), estimated(tiny_folder)
    assert found.parameters == sum(p.numel() for p in policy.model.parameters())
    assert found.trained == sum(p.numel() for p in policy.adapter_parameters())
    assert found.parts["optimizer"] == 8 * found.trained
    assert found.parts["weights"] == pytest.approx(4 * found.parameters, rel=0.01)
    full = estimated(tiny_folder, "policy.full=true")
    assert full.trained == full.parameters
    assert full.parts["reference"] == full.parts["weights"]
    assert estimated(tiny_folder, devices=2).parts["buckets of gradients"] == 4 * found.trained


def test_a_completion_more_costs_its_cache_and_its_logits(tiny_folder):
    few, many = (estimated(tiny_folder, sampled=rows).phases["sampling"] for rows in (64, 128))
    cache = 3 * 2 * 2 * 8 * (31 + 64) * 4  # layers, keys and values, heads, width, tokens and room for more, bytes
    logits = 59 * (4 + 4 + 4 + 8 + 8)  # as they come, scaled, softmax, and twice in float64
    assert (many - few) / 64 == pytest.approx(cache + logits, rel=0.02)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_update_on_shapes_takes_what_a_real_one_takes(tiny_folder, checkpointing):
    policy = Policy(str(tiny_folder), activation_checkpointing=checkpointing, fold=False).train()
    with Allocations() as memory:
        for parameter in policy.model.parameters():  # there before
            memory._known.add(parameter.untyped_storage())
        peaks = {}
        with memory.phase(peaks, "update"):
            learn(policy.model, WORK, Objective())
    settings = ["policy.fold=false", f"policy.activation_checkpointing={str(checkpointing).lower()}"]
    assert estimated(tiny_folder, *settings).phases["update"] == pytest.approx(peaks["update"], rel=0.1)


def test_checkpointing_activations_saves_memory_and_costs_a_forward_pass(tiny_folder):
    plain, less = (
        estimated(tiny_folder, f"policy.activation_checkpointing={on}", completion=100) for on in ("false", "true")
    )
    assert less.phases["update"] < 0.8 * plain.phases["update"]
    assert plain.flops["update"] < less.flops["update"] < 2 * plain.flops["update"]


def test_what_devices_send_each_other_is_the_gradient_once_around(tiny_folder):
    alone, two, eight = (estimated(tiny_folder, devices=n, updates=4) for n in (1, 2, 8))
    assert alone.reduced == alone.seconds("H100")["reduce"] == 0
    assert two.reduced == 4 * 4 * two.trained
    assert eight.reduced == pytest.approx(1.75 * two.reduced)
    assert eight.seconds("H100")["reduce"] == pytest.approx(eight.reduced / 5e10)


def test_shards_save_their_share_of_weights_but_where_all_are_gathered(tiny_folder):
    settings = ("policy.fold=false",)
    plain, cut = estimated(tiny_folder, *settings, devices=2), estimated(tiny_folder, *settings, devices=2, shards=2)
    model = Policy(str(tiny_folder)).model
    frozen = {name: p.nbytes for name, p in model.named_parameters() if not p.requires_grad}
    layers = [sum(size for name, size in frozen.items() if f".layers.{i}." in name) for i in range(3)]
    assert plain.parts["weights"] - cut.parts["weights"] == sum(frozen.values()) // 2
    more = {name: size - plain.phases[name] for name, size in cut.phases.items()}
    held = sum(frozen.values()) - sum(layers) + 3 * layers[0]
    assert more == {"sampling": sum(frozen.values()), "scoring": held, "update": held}
    assert cut.read == plain.read
    assert cut.read == plain.read
    cfg = composed("trainer=fsdp", "trainer.devices=8", "trainer.num_nodes=2", "prompts_per_iteration=16")
    work = workload(cfg, AutoConfig.from_pretrained(tiny_folder))
    assert (work.devices, work.shards) == (16, 8)


@pytest.mark.parametrize(("said", "count"), [("2", 2), ("[0,2,3]", 3), ("'0,1'", 2), ("'4'", 4)])
def test_devices_are_counted_however_they_are_said(tiny_folder, said, count):
    cfg = composed("trainer=ddp", f"trainer.devices={said}", "prompts_per_iteration=12")
    assert workload(cfg, AutoConfig.from_pretrained(tiny_folder)).devices == count


def test_all_devices_are_those_that_are_here(tiny_folder):
    config = AutoConfig.from_pretrained(tiny_folder)
    for said in ("auto", "-1"):
        assert workload(composed("trainer=gpu", f"trainer.devices={said}"), config).devices == max(
            1, torch.cuda.device_count()
        )
        assert workload(composed("trainer=cpu", f"trainer.devices={said}"), config).devices == 1


def test_the_report_names_each_gpu(tiny_folder):
    told = report(composed("experiment=anchor", "policy=local", f"policy.path={tiny_folder}"))
    assert "each of 1 devices: 128 completions an iteration, 512 sampled at once, 256 + 200 tokens" in told
    assert "A100        fits   80 GiB" in told


def test_the_longest_prompt_is_what_the_data_are_filtered_to(tiny_folder):
    config = AutoConfig.from_pretrained(tiny_folder)
    for limit, expected in (("null", 256), ("99", 99)):
        assert workload(composed(f"max_prompt_tokens={limit}"), config).prompt == expected


def test_what_a_server_samples_is_not_counted_here(tiny_folder):
    small = ["policy=local", f"policy.path={tiny_folder}", "callbacks.evaluation.prompts_at_once=4"]
    assert workload(composed(*small), AutoConfig.from_pretrained(tiny_folder)).sampled == 128
    told = report(composed(*small, "sampler=vllm"))
    assert "128 completions an iteration, 32 sampled at once" in told  # for evaluation
    assert "A100        fits   80 GiB      0.0" in told
    assert "What the server of sampler.url needs is not in it" in told
