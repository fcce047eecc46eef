import dataclasses
import re

import pytest

from rhythm.analysis.report import described_responses, fitting, report
from rhythm.analysis.study import CHOSEN
from tests.browser import chromium

HOSTILE = "<script>alert(1)</script>"
MOVED = {
    "heads": {"local": 0.5, "global": 0.25, "receivers": 1.0},
    "heads_by_chance": {"local": 0.18, "global": 0.17, "receivers": 0.16},
    "amplified": {"preplan": 0.5, "anchor": 0.75},
    "amplified_by_chance": {"preplan": 0.26, "anchor": 0.24},
}


@pytest.fixture(scope="module")
def page(policy, found, small):
    """Of two policies, the second with a hostile name."""
    return report(policy, found, {"base": found.tables, HOSTILE: found.tables}, {HOSTILE: MOVED}, small, title=HOSTILE)


def test_responses_are_shown_with_the_marks_of_both_kinds(policy, found, small):
    for response in described_responses(policy, found, small):
        assert response.preplan.any()
        assert response.anchor.any()


def test_the_report_shows_the_tables_and_escapes_everything(page, found):
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    statistic = found.tables["coupling"]["fai_after_waad"]
    assert f"<td>{statistic['observed']:.3f}</td>" in page
    low, high = statistic["shuffled"]["interval"]
    assert f"<td>{statistic['shuffled']['mean']:.3f} [{low:.3f}, {high:.3f}]</td>" in page.replace("\u00a0", " ")
    for words in ("As the policy learns", "Table 1", "Table 2", "Table 10", "Table 20", "data:image/png"):
        assert words in page
    for cell in ("0.25 (chance 0.17)", "0.75 (chance 0.24)", "first"):
        assert f"<td>{cell}</td>" in page.replace("\u00a0", " ")
    assert len(page) < 3_000_000


def test_the_report_says_what_was_chosen(page, policy, found, small):
    for words in (
        "6 responses of", "from seed 0 at temperature 0.7, 70 tokens at most", "Layers 0, 1, 2, 3, 4, 5;",
        "window of 5 tokens, FAI a horizon of 0 to the end", "stands out by 0.5 standard deviations",
        "the 2 most probable other tokens at the 1 places", "within 10 of each high one",
        "Content words are what the task says", "of 100 resamples", "(one by one)",
        "marks stand at the highest 40% of a response", "Credit selects by what its own run reads",
        "global-head FAI peaks; against all tokens that could be peaks",
    ):  # fmt: skip
        assert words in page
    other = dataclasses.replace(small, perturbation=None, prominence=0.25, permute="rotate")
    without = report(policy, found, {"base": found.tables}, {}, other, title="base")
    assert "stands out by 0.25" in without
    assert "Content words" not in without
    pictures = (re.findall('src="(data:image/png[^"]+)"', text) for text in (page, without))
    same = [one == other for one, other in zip(*pictures, strict=True)]
    assert same == [True, True, False, False]  # heads and tokens; the curves and the maps mark other peaks


def test_responses_that_do_not_fit_are_counted(policy, found, small, monkeypatch):
    monkeypatch.setattr("rhythm.analysis.report.fitting", lambda responses: fitting(responses, tokens=150))
    text = report(policy, found, {"base": found.tables}, {}, small, title="base")
    (shown,) = re.findall(r"The first (\d) of 6; with the others", text)
    assert len(re.findall('"problem":', text)) == int(shown) < 6


def test_a_real_browser_shows_the_report(page, found, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    with chromium(tmp_path / "profile") as browser:
        browser.get(file.as_uri())
        read = lambda expression: browser.execute_script(f"return {expression}")  # noqa: E731
        assert browser.title == HOSTILE
        headings = read("[...document.querySelectorAll('h2')].map((h) => h.textContent)")
        assert headings[1] == "Do the signals rise together? (Table 2)"
        assert read("[...document.images].every((image) => image.naturalWidth >= 700)")
        assert read("document.querySelectorAll('#completions tr').length") == len(found.rollout.completions)
        assert read("document.querySelectorAll('#tokens .token').length") == int(found.rollout.completion_mask[0].sum())
        assert read("document.querySelector('input:checked').value") == "waad"
        browser.find_element("css selector", "input[value=fai]").click()
        fai = found.reading.signals[CHOSEN].fai[0, :8].tolist()
        shares = read("[...document.querySelectorAll('#tokens .token')].map((t) => t.style.getPropertyValue('--v'))")[
            :8
        ]
        assert shares.index(max(shares)) == fai.index(max(fai))
        assert read("performance.getEntriesByType('resource').length") == 0
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
