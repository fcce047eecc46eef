"""Text that the model wrote shows as text."""

import html
import re
import string

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.plugin_util import markdown_to_safe_html

from rhythm.callbacks.attention_signals import AttentionSignals as Reader
from rhythm.callbacks.inspection import Inspection, completion_notes, escape, fixed_rollout, histograms
from rhythm.callbacks.observer import RolloutObserver
from rhythm.credit import AnchorCredit, CoupledCredit, CreditStrategy, ShuffledCredit
from rhythm.inspection.maps import mean_maps
from rhythm.inspection.responses import describe
from rhythm.policy import Policy
from rhythm.samplers import LocalSampler
from rhythm.types import AttentionSignals, Rollout
from tests.policies import perturb
from tests.training import EMBEDDED, run


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


def test_what_a_model_writes_shows_as_text():
    hostile = "<script>alert(1)</script> | a\n\n# b\n> `code` **bold** \\\u2028- 1."
    shown = escape(hostile)
    assert html.unescape(shown) == " ↵ ".join(hostile.splitlines())
    assert not set(string.punctuation) & set(re.sub(r"&#\d+;", "", shown))
    indented = escape("    def f():\n\tx")
    assert "<p>\xa0\xa0\xa0\xa0def f(): ↵ " in html.unescape(markdown_to_safe_html(f"> {indented}"))  # and not code
    notes = completion_notes(rollout(hostile, "x", "y", "z"), group_size=2, count=5)
    first, second, third, fourth = notes.split("\n\n")
    assert html.unescape(first) == "**reward 0, advantage +0.00, 2 tokens** numbers [1, 2], target 3"
    assert second == f"> {shown}"
    assert html.unescape(third).startswith("**reward 2, ")
    assert fourth == "> y"


def test_histograms_hold_defined_tokens_only():
    found = histograms(rollout("a", "b"))
    assert found["signals/fai"].tolist() == [0.25, 0.25]
    assert found["signals/entropy"].tolist() == [0.5, 1.0, 0.5, 1.0]
    assert found["credit/weights"].tolist() == [1.5, 1.0, 1.5, 1.0]
    assert "signals/waad" not in found


class Again(RolloutObserver):
    """Two fixed rollouts after each iteration."""

    def __init__(self):
        self.rollouts = []

    def learned(self, module, rollout):
        self.rollouts.append([fixed_rollout(module, 2) for _ in range(2)])


def test_fixed_prompts_are_the_same_problems_and_draws_under_the_policy_as_it_is():
    again, reader = Again(), Reader(horizon=(2, 20))
    settings = {"iterations": 2, "lr": 5.0, "credit": CoupledCredit(), "max_completion_tokens": 40}
    looked, _ = run(callbacks=[reader, again], **settings)
    (first, twice), (later, _) = again.rollouts
    assert torch.equal(first.completion_ids, twice.completion_ids)
    assert first.problems == later.problems == looked.task.held_out(2)
    entropies = [each.signals.entropy.nan_to_num() for each in (first, twice, later)]
    assert torch.equal(entropies[0], entropies[1])
    assert not torch.equal(entropies[0], entropies[2])  # the policy has moved
    assert first.credit.shape == first.signals.fai.shape == first.completion_mask.shape
    assert (first.credit[first.completion_mask] > 1).any()
    assert torch.equal(first.signals.waad.isnan(), ~first.completion_mask)
    plain, _ = run(callbacks=[Reader(horizon=(2, 20))], **settings)
    for name, tensor in plain.policy.adapter_state().items():  # looking changes nothing
        assert torch.equal(tensor, looked.policy.adapter_state()[name])


def test_reading_another_rollout_agrees_with_the_scoring_pass():
    class Compared(RolloutObserver):
        def scored(self, module, rollout):
            self.signals = reader.read(module, rollout, heads=rollout.signals.heads)
            return {}

    reader, compared = Reader(horizon=(2, 20)), Compared()
    _, watcher = run(callbacks=[reader, compared], max_completion_tokens=40)
    for name in ("waad", "waad_drop", "fai"):
        torch.testing.assert_close(
            getattr(compared.signals, name), getattr(watcher.rollout.signals, name), equal_nan=True
        )


class Drawn(Inspection):
    """Keeps the figures of each look."""

    def _figures(self, module, rollout):
        self.figures = dict(super()._figures(module, rollout))
        return self.figures.items()


def test_fresh_maps_are_of_the_policy_that_wrote_the_completion(tmp_path):
    """At this rate an update makes of the policy another, whose maps are none of this completion's."""
    drawn, reader = Drawn(tmp_path, fixed=0), Reader(horizon=(2, 20))
    _, watcher = run(callbacks=[drawn, reader], logger=TensorBoardLogger(tmp_path), lr=5.0, max_completion_tokens=20)
    near, _, far, _ = drawn.figures["fresh_1/maps"].axes
    rollout = watcher.rollout
    ids = rollout.input_ids[0][rollout.attention_mask[0]]
    before = perturb(Policy(EMBEDDED, rank=4, alpha=8))
    before.load_adapter_state(watcher.before)
    maps = mean_maps(before.eval().model, ids, int(rollout.prompt_lengths[0]), rollout.signals.heads, reader.settings)
    for axes, of_policy in zip((near, far), maps, strict=True):
        shown = torch.from_numpy(axes.images[0].get_array().filled(0.0))
        torch.testing.assert_close(shown, of_policy.tril(), atol=1e-5, rtol=0, check_dtype=False)


def test_a_page_tells_what_a_token_is_pushed_by(tmp_path):
    """Importance weights of a sampler that is not quite the policy included."""

    class Cautious(LocalSampler):
        def importance_weights(self, rollout):
            return torch.full_like(rollout.old_logps, 0.5)

    _, watcher = run(callbacks=[Inspection(tmp_path, every=5)], sampler=Cautious(), prompts=2, max_completion_tokens=20)
    rollout = watcher.rollout
    pushed = rollout.advantages[:, None] * rollout.credit * 0.5
    torch.testing.assert_close(rollout.shaped_advantages, pushed)
    described = describe(rollout, Policy(EMBEDDED).tokenizer, [0], group_size=4)[0].values["advantage"]
    torch.testing.assert_close(torch.from_numpy(described), pushed[0][rollout.completion_mask[0]])


def test_maps_are_read_as_the_signals_of_the_run_are(tmp_path):
    drawn, reader = Drawn(tmp_path), Reader(horizon=(2, 20), row="predictor", sink="drop")
    run(callbacks=[drawn, reader], logger=TensorBoardLogger(tmp_path), max_completion_tokens=20)
    for tag in ("fresh_1/maps", "fixed_1/maps"):
        near, _, far, _ = drawn.figures[tag].axes
        assert near.get_ylabel() == "token, read from the row before it"
        assert near.texts[0].get_text() == "Ā of the local heads, sink dropped"
        assert far.images[0].get_array().mask[0].tolist() == [False, *[True] * 19]


def test_without_signals_there_is_a_page_all_the_same(tmp_path):
    run(callbacks=[Inspection(tmp_path, every=5)], max_completion_tokens=20)
    (page,) = (tmp_path / "inspect").iterdir()
    assert page.name == "iteration_000001.html"
    text = page.read_text()
    assert '"name":"entropy"' in text
    assert '"name":"fai"' not in text


class Provider(RolloutObserver):
    """Fills a signal without a reader of attention: higher along each response."""

    def __init__(self, name):
        self.provides = frozenset({name})

    def scored(self, module, rollout):
        mask = rollout.completion_mask
        setattr(rollout.signals, *self.provides, mask.cumsum(1).float().masked_fill(~mask, torch.nan))
        return {}


class SurpriseCredit(CreditStrategy):
    requires = frozenset({"surprise"})

    def weights(self, signals, mask):
        return 1 + (signals.surprise > 10)


@pytest.mark.parametrize(
    ("name", "credit", "others"),
    [
        ("fai", AnchorCredit(), []),
        ("surprise", SurpriseCredit(), []),
        ("surprise", ShuffledCredit(of=SurpriseCredit()), [Reader(horizon=(2, 20))]),
    ],
)
def test_a_signal_of_ones_own_is_trained_with_and_looked_at(tmp_path, name, credit, others):
    drawn, settings = Drawn(tmp_path), {"prompts": 2, "max_completion_tokens": 20}
    callbacks = [drawn, Provider(name), *others]
    _, watcher = run(callbacks=callbacks, credit=credit, logger=TensorBoardLogger(tmp_path), **settings)
    assert (watcher.rollout.credit[watcher.rollout.completion_mask] > 1).any()
    assert {"fresh_1/tokens", "fixed_1/tokens", "fixed_1/curves"} <= drawn.figures.keys()


class Both(Reader):
    """A reader that fills one signal more."""

    provides = Reader.provides | {"surprise"}

    def scored(self, module, rollout):
        rollout.signals.surprise = rollout.completion_mask.cumsum(1).float()
        return super().scored(module, rollout)


def test_a_reader_may_fill_one_signal_more(tmp_path):
    drawn, settings = Drawn(tmp_path), {"prompts": 2, "max_completion_tokens": 20}
    run(callbacks=[drawn, Both()], credit=SurpriseCredit(), logger=TensorBoardLogger(tmp_path), **settings)
    assert {"fresh_1/maps", "fixed_1/maps"} <= drawn.figures.keys()


@pytest.mark.parametrize("name", ["fresh", "fixed", "completions"])
def test_counts_below_zero_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"callbacks.inspection.{name}=-1"):
        Inspection(tmp_path, **{name: -1})
