"""report.html: the tables of an analysis with the paper's numbers beside them, figures, and every response."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from rhythm.analysis.study import CHOSEN, Analysis, AnalysisSettings
from rhythm.analysis.tokens import KINDS
from rhythm.inspection.figures import curves_figure, heads_figure, maps_figure
from rhythm.inspection.maps import mean_maps
from rhythm.inspection.page import document, fitting, picture, viewer, viewer_data, viewer_script
from rhythm.inspection.responses import Response, describe
from rhythm.inspection.tokens import tokens_figure
from rhythm.policy import Policy
from rhythm.types import AttentionSignals, Rollout

STATISTICS = {  # of Table 2, with the paper's observed value, baseline and lift
    "entropy_at_waad_peaks": ("entropy at WAAD peaks, nats; against all tokens", "0.361, 0.239, +52%"),
    "receiver_peaks_global": (
        "share of receiver-head FAI peaks that are global-head FAI peaks; against all tokens that could be peaks",
        "0.608, 0.224, +171%",
    ),
    "fai_after_waad": (
        "share of FAI peaks at or just after a WAAD peak; against peaks thrown anywhere",
        "0.525, 0.369, +42%",
    ),
}
LIFTS = ["lift: entropy at WAAD peaks", "lift: receiver peaks that are global", "lift: FAI at or just after WAAD peaks"]
SIDES = {
    "top": ("highest FAI", "0.534"),
    "bottom": ("lowest FAI", "0.631"),
    "matched": ("lowest FAI near each of the highest", ""),
}
CONFOUNDERS = {"depth": "depth in the response", "entropy": "entropy there", "probability": "probability forced"}
CONTENT = {
    "task": "what the task says, of Countdown the numbers",
    "words": "all but English function words",
    "numbers": "the numbers",
}
THROWN = {"shuffle": "one by one", "rotate": "all of a response turned around together"}
SHOWN_WORDS = 12
NO_BREAK = "\u00a0"  # a space at which no line ends


def report(
    policy: Policy,
    found: Analysis,
    analyses: dict[str, dict[str, Any]],
    movement: dict[str, dict[str, Any]],
    settings: AnalysisSettings,
    *,
    title: str,
) -> str:
    """The page of the last policy that was analyzed; where there are several, with what moved between them.

    Args:
        policy, found: the last one and its analysis.
        analyses: name -> tables, in order.
        movement: name -> how far from the first, of all but the first.
    """
    tables, responses = found.tables, described_responses(policy, found, settings)
    shown = fitting(responses)
    body = [introduction(tables, settings)]
    if len(analyses) > 1:
        body += ["<h2>As the policy learns</h2>", movement_table(analyses, movement, tables["heads"])]
    body += ["<h2>Do the signals rise together? (Table 2)</h2>", coupling_table(tables["coupling"])]
    if "perturbation" in tables:
        body += ["<h2>What hangs on a token? (Table 1)</h2>", *perturbation_tables(tables["perturbation"])]
    body += ["<h2>By depth (Table 10)</h2>", layers_table(tables["layers"])]
    body += ["<h2>Where FAI peaks stand beside WAAD peaks (Table 20)</h2>", offsets_table(tables["alignment"])]
    body += ["<h2>Heads</h2>", heads_table(tables["heads"]), *pictures(policy, found, responses, settings)]
    body += ["<h2>Words among the marked tokens</h2>", words_table(tables["tokens"])]
    body += ["<h2>Responses</h2>"]
    if len(shown) < len(responses):
        body += [f"<p>The first {len(shown)} of {len(responses)}; with the others the page would be too large.</p>"]
    return document(title, "\n".join([*body, viewer()]), script=viewer_script(), data=viewer_data(shown))


def introduction(tables: dict[str, Any], settings: AnalysisSettings) -> str:
    """What was analyzed, by which choices, and how to read the numbers."""
    said, signals, chosen = tables["responses"], settings.signals, tables["heads"]["groups"][CHOSEN]
    high = "the end" if signals.horizon[1] is None else signals.horizon[1]
    answered = [
        f"{said['count']} responses of {said['mean_length']:.0f} tokens on average to held-out problems, one each, "
        f"sampled from seed {settings.seed} at temperature {settings.temperature:g}, {settings.max_completion_tokens} "
        f"tokens at most ({said['truncated']:.0%} truncated); mean reward {said['reward']:.3f}.",
        f"{said['left_out_as_short']} shorter than the window are left out." * bool(said["left_out_as_short"]),
    ]
    choices = [
        f"Layers {', '.join(map(str, chosen['layers']))}; {settings.head_fraction:.0%} of their heads are local and "
        f"as many global, and {settings.receiver_fraction:.0%} receivers, by rows {signals.receiver_gap} tokens on and "
        "more.",
        f"WAAD has a window of {signals.window} tokens, FAI a horizon of {signals.horizon[0]} to {high}; "
        f"row: {signals.row}, sink: {signals.sink}, min_rows: {signals.min_rows}.",
        f"A peak stands out by {settings.prominence:g} standard deviations of its response's values.",
        f"Preplan and anchor marks stand at the highest {settings.top_fraction:.0%} of a response's WAAD drops and FAI "
        "as they are read here. Credit selects by what its own run reads, by default the middle layers and a horizon "
        "of 10 to 100.",
    ]
    if (forced := settings.perturbation) is not None:
        near = f", and the lowest within {forced.match_within} of each high one" if forced.match_within else ""
        choices += [
            f"Table 1 takes greedy responses and forces the {forced.alternatives} most probable other tokens at the "
            f"{forced.positions} places of highest and of lowest FAI that have {forced.tail} tokens behind them{near}. "
            f"Content words are {CONTENT[forced.content_words]}."
        ]
    reading = [
        f"Brackets are 95% intervals over responses or problems by bootstrap of {settings.resamples} resamples, but "
        "for shares of problems Wilson's, and for marks thrown anew where 95% of the draws lie. p is two-sided, of as "
        f"many times throwing the marks anew within each response ({THROWN[settings.permute]}): whether what is "
        f"observed differs from their mean; {2 / (settings.resamples + 1):.1g} is the least that it can be. Signals of "
        "neighbouring tokens are alike and peaks are never neighbours, which permute=rotate respects. No interval and "
        "no p is corrected for how many there are.",
        "The paper's numbers are of Qwen3-4B-Base on mathematics, single values without intervals.",
    ]
    parts = (answered, choices, reading)
    return "\n".join(f"<p>{html.escape(' '.join(filter(None, part)))}</p>" for part in parts)


def described_responses(policy: Policy, found: Analysis, settings: AnalysisSettings) -> list[Response]:
    rollout, signals = found.rollout, found.reading.signals[CHOSEN]
    described = Rollout(**vars(rollout))
    described.signals = AttentionSignals(
        entropy=found.reading.entropy,
        waad=signals.waad,
        waad_drop=signals.waad_drop(rollout.completion_mask),
        fai=signals.fai,
    )
    rows = range(len(rollout.completions))
    return describe(described, policy.tokenizer, rows, group_size=1, fraction=settings.top_fraction)


def pictures(policy: Policy, found: Analysis, responses: Sequence[Response], settings: AnalysisSettings) -> list[str]:
    """Of the response whose length is the median: its tokens, curves and maps; of the heads their distances."""
    row = int(np.argsort([len(response.tokens) for response in responses])[len(responses) // 2])
    response, heads = responses[row], found.reading.selections[CHOSEN].heads
    ids = found.rollout.input_ids[row][found.rollout.attention_mask[row]]
    maps = mean_maps(policy.model, ids, int(found.rollout.prompt_lengths[row]), heads, settings.signals)
    shown = maps_figure(*maps, response, "Mean maps of both head groups", settings.signals, settings.prominence)
    name = f"response {row + 1}"
    return [
        picture(heads_figure(found.reading.sums.mean_distance(), heads, "Mean attention distance"), "heads"),
        f"<h2>One response, of median length: {html.escape(name)}</h2>",
        picture(tokens_figure(response, name), "tokens with their signals"),
        picture(
            curves_figure(response, "WAAD, FAI and entropy, after Fig. 2", settings.prominence), "curves of the signals"
        ),
        picture(shown, "mean attention maps"),
    ]


def coupling_table(lifts: dict[str, Any]) -> str:
    rows = []
    for name, (meaning, paper) in STATISTICS.items():
        of = lifts[name]
        told = [number(of["observed"]), number(of["expected"]), lift(of)]
        rows.append([meaning, *told, thrown(of), number(of["p"]), of["marks"], paper])
    return table(["statistic", "observed", "expected", "lift", "marks thrown anew", "p", "peaks", "paper"], rows)


def perturbation_tables(found: dict[str, Any]) -> list[str]:
    rows = [
        [meaning, interval(of["overlap"], of["interval"]), *(number(of[name]) for name in CONFOUNDERS), paper]
        for side, (meaning, paper) in SIDES.items()
        for of in ([found[side]] if side in found else [])
    ]
    heading = ["forced tokens at", "overlap of content words", *CONFOUNDERS.values(), "paper"]
    shares = []
    for name, meaning, paper in (("top_below_bottom", "lowest", "0.871"), ("top_below_matched", "lowest nearby", "")):
        if name in found:
            of = found[name]
            told = f"{interval(of['share'], of['interval'])}, {of['ties']} of {of['problems']} equal"
            shares.append([f"Pr(overlap at the highest FAI is lower than at the {meaning})", told, paper])
            told = interval(of["difference"], of["difference_interval"])
            shares.append([f"difference in overlap, highest minus {meaning}", told, ""])
    for name, meaning in (
        ("at_equal_place", "equal depth in the response"),
        ("at_equal_place_and_probability", "equal depth, entropy and probability of the forced token"),
    ):
        adjusted = found[name]
        told = interval(adjusted["difference"], adjusted["interval"])
        shares.append([f"difference in overlap, highest minus lowest FAI, at {meaning}", told, ""])
    return [table(heading, rows), table(["over problems", "", "paper"], shares)]


def layers_table(thirds: dict[str, Any]) -> str:
    rows = [
        [f"{name}, layers {of['layers']}", *(f"{lift(of[each])}, p {number(of[each]['p'])}" for each in STATISTICS)]
        for name, of in thirds.items()
    ]
    return table(["third", *LIFTS], rows)


def offsets_table(alignment: dict[str, Any]) -> str:
    rows = [
        [
            f"{int(offset):+d}".replace("+0", "0"),
            number(of["observed"]),
            number(of["expected"]),
            lift(of),
            thrown(of),
            number(of["p"]),
        ]
        for offset, of in alignment["offsets"].items()
    ]
    return table(
        ["tokens behind a WAAD peak", "share of FAI peaks", "expected", "lift", "marks thrown anew", "p"], rows
    )


def heads_table(heads: dict[str, Any]) -> str:
    rows = [
        [
            f"{name}, layers {of['layers']}",
            *(pairs(of[group]) for group in ("local", "global", "receivers")),
            f"{of['receivers_among_global']:.2f}",
            ", ".join(f"{value:.2f}" for value in of["agreement_of_halves"].values()),
        ]
        for name, of in heads["groups"].items()
    ]
    heading = ["groups among", *(f"{group} heads, as layer.head" for group in ("local", "global", "receiver"))]
    heading += ["receivers that are global", "agreement of halves: local, global, receiver"]
    return table(heading, rows)


def words_table(tokens: dict[str, list[dict[str, Any]]]) -> str:
    columns = [
        [f"{row['word'].strip() or '␣'}: {row['share']:.0%} of {row['count']}" for row in rows[:SHOWN_WORDS]]
        for rows in tokens.values()
    ]
    heading = [f"{kind} by {KINDS[kind]}: share of a word's occurrences" for kind in tokens]
    return table(heading, zip_longest(*columns, fillvalue=""))


def movement_table(
    analyses: dict[str, dict[str, Any]], movement: dict[str, dict[str, Any]], heads: dict[str, Any]
) -> str:
    """A row for each policy. `heads` is that table of the last one, for how sure its groups are."""
    rows = []
    for name, tables in analyses.items():
        row = [name, f"{tables['responses']['reward']:.3f}", *(lift(tables["coupling"][each]) for each in STATISTICS)]
        moved = movement.get(name)
        if moved is None:
            row += ["first"] * 5
        else:
            for kind in ("heads", "amplified"):
                chance = moved[f"{kind}_by_chance"]
                row += [f"{value:.2f} (chance{NO_BREAK}{chance[each]:.2f})" for each, value in moved[kind].items()]
        rows.append(row)
    heading = ["policy", "reward", *LIFTS]
    heading += [f"same {group} heads" for group in ("local", "global", "receiver")]
    heading += [f"same {kind} tokens" for kind in ("preplan", "anchor")]
    halves = ", ".join(f"{value:.2f}" for value in heads["groups"][CHOSEN]["agreement_of_halves"].values())
    note = (
        "Same heads and tokens: Jaccard index with the first policy, tokens in its responses; in brackets what as many "
        f"thrown at random would have on average. Two halves of the last policy's own responses agree on {halves} of "
        "the local, global and receiver heads: agreement as high as that is no sign of a move."
    )
    return table(heading, rows) + f"<p class='faint'>{html.escape(note)}</p>"


def table(heading: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """HTML; everything in it is escaped."""

    def line(cells: Iterable[Any], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(str(cell))}</{kind}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<div class='wide'><table><thead>{line(heading, 'th')}</thead><tbody>{body}</tbody></table></div>"


def lift(of: dict[str, Any]) -> str:
    low, high = of["interval"]
    return f"{of['lift']:+.0%} [{low:+.0%}, {high:+.0%}]".replace(" ", NO_BREAK)


def thrown(of: dict[str, Any]) -> str:
    """The mean over draws of what would be observed with the marks thrown anew, and where 95% of the draws lie."""
    return interval(of["shuffled"]["mean"], of["shuffled"]["interval"])


def interval(value: float, bounds: Sequence[float]) -> str:
    return f"{number(value)} [{number(bounds[0])}, {number(bounds[1])}]".replace(" ", NO_BREAK)


def number(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "undefined"


def pairs(heads: Sequence[Sequence[int]]) -> str:
    return " ".join(f"{layer}.{head}" for layer, head in heads)
