"""Text that the model wrote shows as text."""

import torch

from rhythm.callbacks.inspection import completion_table, escape, histograms
from rhythm.types import AttentionSignals, Rollout


def rollout(*completions):
    n, mask = len(completions), torch.tensor([[True, True, False]] * len(completions))
    return Rollout(
        problems=[{"numbers": [1, 2], "target": 3}] * n,
        completions=list(completions),
        input_ids=torch.zeros(n, 4, dtype=torch.long),
        attention_mask=torch.ones(n, 4, dtype=torch.bool),
        prompt_lengths=torch.ones(n, dtype=torch.long),
        completion_ids=torch.zeros(n, 3, dtype=torch.long),
        completion_mask=mask,
        truncated=torch.zeros(n, dtype=torch.bool),
        rewards=torch.arange(n).float(),
        advantages=torch.zeros(n),
        signals=AttentionSignals(
            entropy=torch.tensor([[0.5, 1.0, 9.0]] * n), fai=torch.tensor([[0.25, torch.nan, 9.0]] * n)
        ),
        credit=torch.tensor([[1.5, 1.0, 1.0]] * n),
    )


def test_what_a_model_writes_cannot_leave_its_cell():
    hostile = "<script>alert(1)</script> | a\n| b | `code` **bold** \\"
    shown = escape(hostile)
    assert "<script" not in shown
    assert not set("|`*\n\\") & set(shown.replace("<br>", ""))
    table = completion_table(rollout(hostile, "x", "y", "z"), group_size=2, count=5)
    assert len(table.splitlines()) == 2 + 2
    assert all(line.count("|") == 6 for line in table.splitlines())


def test_histograms_hold_defined_tokens_only():
    found = histograms(rollout("a", "b"))
    assert found["signals/fai"].tolist() == [0.25, 0.25]
    assert found["signals/entropy"].tolist() == [0.5, 1.0, 0.5, 1.0]
    assert found["credit/weights"].tolist() == [1.5, 1.0, 1.5, 1.0]
    assert "signals/waad" not in found
