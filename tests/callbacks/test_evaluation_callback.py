"""Held-out evaluations in the middle of a run."""

import pytest
import torch

from rhythm.callbacks.evaluation import HeldOutEvaluation
from tests.training import EasyCountdown, countdown, run


@pytest.mark.parametrize(("precision", "lower"), [("32-true", False), ("bf16-mixed", True)])
def test_what_is_evaluated_is_the_policy_in_the_precision_that_it_is_trained_in(precision, lower):
    lowered = []

    class Noting(EasyCountdown):
        def rewards(self, rollout):
            lowered.append(torch.is_autocast_enabled("cpu"))
            return super().rewards(rollout)

    held_out = HeldOutEvaluation(every=1, problems=2, samples=2, prompts_at_once=2)
    run(task=countdown(Noting), callbacks=[held_out], precision=precision, max_completion_tokens=10)
    assert lowered == [lower] * 3  # before, in training, and after
