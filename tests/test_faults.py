"""What goes wrong inside an iteration, and iterations with nothing to learn: counted, and the adapter stays whole."""

import math

import pytest
import torch

from rhythm.callbacks.attention_signals import AttentionSignals
from rhythm.callbacks.checkpoints import Checkpoints
from rhythm.callbacks.observer import RolloutObserver
from rhythm.credit import AnchorCredit
from rhythm.faults import is_out_of_memory
from rhythm.objective import Objective
from rhythm.scoring import micro_batches
from rhythm.tasks.reward import RewardFunction
from tests.training import (
    EasyCountdown,
    HopelessCountdown,
    SteppedCredit,
    assert_same,
    countdown,
    moved,
    naive_gradient,
    run,
)


def unmoved(module, watcher):
    return all(step.abs().max() == 0 for step in moved(module, watcher).values())


# ---- nothing to learn


def test_where_every_reward_is_equal_no_step_is_taken_and_nothing_moves():
    module, watcher = run(task=countdown(HopelessCountdown), optimizer=torch.optim.AdamW)
    assert watcher.metrics["frac_reward_zero_std"] == 1
    assert watcher.metrics["updates/taken"] == 0
    assert unmoved(module, watcher)


def test_a_kl_penalty_learns_even_where_every_reward_is_equal():
    _, watcher = run(task=countdown(HopelessCountdown), objective=Objective(beta=1.0), iterations=1)
    assert watcher.metrics["updates/taken"] == 1
    assert watcher.metrics["kl"] > 0
    assert watcher.rollout.ref_logps is not None


def test_truncated_completions_can_be_left_out_of_the_loss():
    # Nothing ends within 20 tokens, so with the mask there is nothing to learn from.
    _, watcher = run(mask_truncated=True, max_completion_tokens=20)
    assert watcher.rollout.truncated.all()
    assert watcher.metrics["updates/taken"] == 0
    assert watcher.metrics["completions/clipped_ratio"] == 1


class FailingCountdown(EasyCountdown):
    """Samples whose reward cannot be told: one in a group, all of another."""

    def rewards(self, rollout):
        rewards = super().rewards(rollout)
        rewards[[1, 8, 9, 10, 11]] = math.nan
        return rewards


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_samples_whose_reward_failed_are_left_out_of_the_update_and_counted(beta):
    settings = {"objective": Objective(beta=beta), "credit": SteppedCredit()}
    module, watcher = run(task=countdown(FailingCountdown), **settings)
    assert watcher.metrics["reward/failed"] == 5 / 16
    assert watcher.rollout.advantages[[1, 8, 9, 10, 11]].tolist() == [0.0] * 5
    assert math.isfinite(watcher.metrics["loss"])
    assert watcher.metrics["updates/taken"] == 1
    watcher.rollout.truncated[:] = False
    watcher.rollout.truncated[[1, 8, 9, 10, 11]] = True
    assert_same(moved(module, watcher), naive_gradient(watcher.rollout, beta=beta, drop_truncated=True))


def test_where_every_reward_failed_nothing_moves():
    class Hopeless(HopelessCountdown):
        def reward(self, problem, completion):
            return math.nan

    module, watcher = run(task=countdown(Hopeless), objective=Objective(beta=0.5), optimizer=torch.optim.AdamW)
    assert watcher.metrics["reward/failed"] == 1
    assert watcher.metrics["updates/taken"] == 0
    assert unmoved(module, watcher)


def test_a_reward_function_in_its_own_process_rewards_a_rollout():
    class Custom(EasyCountdown):
        def rewards(self, rollout):
            asked = ["raise", *rollout.completions[1:]]
            return torch.tensor(function([{"value": i} for i in range(len(asked))], asked))

    function = RewardFunction("tests.tasks.reward_functions.one")
    module, watcher = run(task=countdown(Custom))
    function.close()
    lengths = [i + len(text) for i, text in enumerate(watcher.rollout.completions)]
    assert watcher.rollout.rewards[1:].tolist() == lengths[1:]
    assert watcher.metrics["reward/failed"] == 1 / 16
    assert all(step.abs().max() > 0 for step in moved(module, watcher).values())


def test_a_completion_that_ends_at_once_is_a_completion():
    class Answered:
        def prompt(self, problem):  # it holds the answer, so at a low temperature the policy has nothing left to say
            return "numbers : 1 2 3 target : 6 . my answer is ( 1 + 2 ) + 3"

    class Alternating(Answered, EasyCountdown):
        def rewards(self, rollout):
            return torch.arange(len(rollout.completions)) % 2.0

    class Hopeless(Answered, HopelessCountdown):
        pass

    module, watcher = run(task=countdown(Alternating), temperature=0.05, optimizer=torch.optim.AdamW)
    assert watcher.rollout.completions == [""] * 16
    assert watcher.rollout.completion_mask.sum(1).tolist() == [1] * 16
    assert math.isfinite(watcher.metrics["loss"])
    assert watcher.metrics["updates/taken"] == 1
    assert all(tensor.isfinite().all() for tensor in module.policy.adapter_state().values())
    module, watcher = run(task=countdown(Hopeless), temperature=0.05)
    assert watcher.metrics["updates/taken"] == 0
    assert unmoved(module, watcher)


def test_one_prompt_is_a_batch():
    module, watcher = run(prompts=1, credit=SteppedCredit())
    assert len(watcher.rollout.completions) == 4
    assert_same(moved(module, watcher), naive_gradient(watcher.rollout))


def test_a_group_of_one_teaches_nothing_and_is_counted():
    module, watcher = run(group_size=1, optimizer=torch.optim.AdamW)
    assert watcher.rollout.advantages.tolist() == [0.0] * 4
    assert (watcher.metrics["frac_reward_zero_std"], watcher.metrics["updates/taken"]) == (1, 0)
    assert watcher.metrics["loss"] == 0
    assert unmoved(module, watcher)


# ---- numbers that are not finite


class PoisonedAdvantage(RolloutObserver):
    """Makes the loss infinite in some iterations."""

    def __init__(self, iterations=(1,)):
        self.iterations = iterations

    def scored(self, module, rollout):
        if module.iteration in self.iterations:
            rollout.advantages[0] = math.inf
        return {}


class PoisonedGradient(RolloutObserver):
    """Makes one parameter's gradient NaN and leaves the loss alone."""

    def scored(self, module, rollout):
        _, parameter = trained(module)[3]
        parameter.register_hook(lambda gradient: gradient * math.nan)
        return {}


def trained(module):
    return [(name, p) for name, p in module.policy.model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("poison", [PoisonedAdvantage, PoisonedGradient])
def test_an_update_that_is_not_finite_is_skipped_named_and_counted(poison, caplog):
    module, watcher = run(callbacks=[poison()], optimizer=torch.optim.AdamW)
    assert watcher.metrics["updates/not_finite"] == 1
    assert watcher.metrics["updates/taken"] == 0
    assert unmoved(module, watcher)
    assert not module.optimizers().state  # nor did the optimizer see it
    culprit = "the loss" if poison is PoisonedAdvantage else f"the gradient of {trained(module)[3][0]}"
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("rhythm")]
    assert messages == [f"iteration 1: an update is skipped, since {culprit} is not finite"]


def test_too_many_in_a_row_end_the_run_and_the_last_good_checkpoint_stays(tmp_path):
    poisoned = PoisonedAdvantage(range(2, 10))  # one of the two updates of each; the other is taken
    module, watcher = run(callbacks=[poisoned], updates_per_iteration=2, iterations=3, max_not_finite=2)
    assert watcher.metrics["updates/not_finite"] == 0.5
    assert math.isfinite(watcher.metrics["loss"])  # of the other one
    assert watcher.metrics["grad_norm"] > 0
    line = "3 updates in a row were not finite, the last in the loss; the adapter is as before them and so are the "
    line += "checkpoints; lower learning_rate, or raise algorithm.max_not_finite"
    with pytest.raises(FloatingPointError, match=f"^{line}$"):
        run(
            callbacks=[PoisonedAdvantage(range(3, 10)), Checkpoints(str(tmp_path), every=1)],
            iterations=9,
            lr=1e-3,
            max_not_finite=3,
        )
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["iteration"] == 4
    assert saved["not_finite"] == 2  # a resumed run goes on counting
    module, _ = run(iterations=2, lr=1e-3)
    assert all(torch.equal(saved["state_dict"][name], t) for name, t in module.policy.adapter_state().items())


# ---- memory that gives out


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Small(RolloutObserver):
    """Stands for a device where no more than `rows` sequences fit in a pass, while scoring, forward or backward."""

    def __init__(self, rows, stage, error=CUDA):
        self.rows, self.stage, self.error = rows, stage, error
        self.sizes = []

    def on_train_start(self, trainer, module):
        self.module = module
        module.policy.model.get_output_embeddings().register_forward_hook(self.passed)

    def passed(self, layer, inputs, logits):
        sampling = logits.shape[1] == 1  # a token at a time
        stage = "forward" if self.module.policy.training else "sampling" if sampling else "scoring"
        if stage == "forward" and self.stage == "backward":
            logits.register_hook(lambda gradient: self.check(len(gradient)))
        elif stage == self.stage:
            self.check(len(logits))

    def check(self, rows):
        self.sizes.append(rows)
        if rows > self.rows and len(self.sizes) % 2 == 0:  # not at the first, so that there is something to undo
            raise self.error


IN_PASSES = {"credit": AnchorCredit(), "micro_batch_size": 8, "callbacks": [AttentionSignals()]}


@pytest.fixture(scope="module")
def expected():
    return moved(*run(**IN_PASSES))


@pytest.mark.parametrize("stage", ["scoring", "forward", "backward"])
def test_a_pass_that_runs_out_of_memory_is_begun_again_in_halves_with_the_same_gradient(expected, stage, caplog):
    small = Small(2, stage)
    module, watcher = run(**IN_PASSES | {"callbacks": [AttentionSignals(), small]})
    assert (small.sizes[:2], set(small.sizes)) == ([8, 8], {8, 4, 2})
    assert module.micro_batch_size == 2
    assert_same(moved(module, watcher), expected, tolerance=1e-4)
    assert "out of memory: from here on micro_batch_size=4 instead of 8, for the same result" in caplog.messages
    assert "out of memory: from here on micro_batch_size=2 instead of 4, for the same result" in caplog.messages


def test_where_memory_gives_out_between_two_passes_no_token_is_counted_twice(monkeypatch):
    def running_out(rollout, rows, size):
        for number, batch in enumerate(micro_batches(rollout, rows, size)):
            if number == 1 and size == 8:
                raise CUDA
            yield batch

    monkeypatch.setattr("rhythm.scoring.micro_batches", running_out)
    signals = AttentionSignals()
    module, watcher = run(**IN_PASSES | {"callbacks": [signals]})
    assert module.micro_batch_size == 4
    assert signals.sums.rows == watcher.rollout.completion_mask.sum()


def test_where_not_even_one_sequence_fits_the_setting_to_lower_is_named():
    with pytest.raises(MemoryError, match=r"^out of memory; lower max_completion_tokens$"):
        run(callbacks=[Small(0, "forward")], micro_batch_size=8)


def test_other_errors_of_a_pass_are_not_taken_for_one_of_memory():
    with pytest.raises(RuntimeError, match="size mismatch"):
        run(callbacks=[Small(4, "forward", RuntimeError("size mismatch"))], micro_batch_size=8)


def test_running_out_of_memory_is_known_by_its_words():
    with pytest.raises(RuntimeError) as allocation:
        torch.empty(10**15)  # the CPU's own
    for error in (allocation.value, CUDA, RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)")):
        assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_sampling_that_does_not_fit_names_what_to_lower():
    with pytest.raises(MemoryError, match="lower prompts_per_iteration, group_size or max_completion_tokens"):
        run(group_size=10**14)  # more than any address space holds
