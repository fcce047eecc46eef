"""The page in a real browser, from the file system."""

import numpy as np
import pytest

from rhythm.inspection.page import rollout_page
from rhythm.inspection.responses import Response
from tests.browser import chromium, prefer

HOSTILE = ["<script>document.title = 'owned'</script>", "</script>", "</pre>", "<img src=x onerror=alert(1)>", "&lt;\n"]
RUN = "<script>document.title = 'owned'</script>"


def responses():
    plain = Response(
        "numbers 1 2",
        ["so", " a", " b", " c"],
        reward=0.0,
        advantage=-0.5,
        values={"fai": np.array([0.1, 0.2, 0.1, np.nan]), "credit": np.array([1.0, 1.5, 1.0, 1.0])},
        anchor=np.array([False, True, False, False]),
    )
    hostile = Response(
        "<b>bold</b>",
        HOSTILE,
        reward=1.0,
        advantage=0.5,
        values={"fai": np.full(5, 0.15), "credit": np.ones(5)},
    )
    return [plain, hostile, Response("numbers 3", ["so"], reward=np.nan)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture
def page(browser, tmp_path):
    file = tmp_path / "iteration_000100.html"
    file.write_text(rollout_page(responses(), "Iteration 100"), encoding="utf-8")
    prefer(browser, "light")
    browser.get(file.as_uri())
    return browser


def read(page, expression):
    return page.execute_script(f"return {expression}")


def tokens(page, expression):
    return read(page, f"[...document.querySelectorAll('#tokens .token')].map((token) => {expression})")


def column(page, number):
    return read(
        page, f"[...document.querySelectorAll('#completions tr')].map((row) => row.cells[{number}].textContent)"
    )


def click(page, selector):
    page.find_element("css selector", selector).click()


def press(page, key):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(page).send_keys(key).perform()


def test_the_switch_colours_tokens_by_another_signal(page):
    assert tokens(page, "token.style.getPropertyValue('--v')") == ["0.000", "1.000", "0.000", "0.000"]
    assert tokens(page, "token.classList.contains('undefined')") == [False] * 4
    click(page, "input[value=fai]")
    shares = [float(share) for share in tokens(page, "token.style.getPropertyValue('--v')")]
    assert shares == pytest.approx([0, 1, 0, 0], abs=0.02)
    assert tokens(page, "token.classList.contains('undefined')") == [False, False, False, True]
    low, high, same, undefined = tokens(page, "getComputedStyle(token).background")
    assert low == same
    assert len({low, high, undefined}) == 3  # a value that is not there does not look like a low one
    assert read(page, "document.getElementById('meaning').textContent").startswith("the share of attention")
    assert tokens(page, "token.classList.contains('anchor')") == [False, True, False, False]


def test_it_opens_on_the_first_completion_that_has_an_advantage(browser, tmp_path):
    alike = Response("numbers 0", ["so"], reward=0.0, advantage=0.0, values={"credit": np.ones(1)})
    for name, given, problem in (
        ("credited", [alike, *responses()], "numbers 1 2"),
        ("alike", [alike, alike], "numbers 0"),
    ):
        file = tmp_path / f"{name}.html"
        file.write_text(rollout_page(given, "Iteration 100"), encoding="utf-8")
        browser.get(file.as_uri())
        assert read(browser, "document.getElementById('problem').textContent") == problem


def test_the_list_sorts_and_what_is_chosen_is_shown(page):
    assert column(page, 1) == ["0", "1", "–"]
    click(page, "#columns th:nth-child(2) button")
    assert column(page, 1) == ["1", "0", "–"]  # no number, no place: last in both directions
    assert read(page, "document.querySelector('[aria-sort]').ariaSort") == "descending"
    click(page, "#columns th:nth-child(2) button")
    assert column(page, 1) == ["0", "1", "–"]
    click(page, "#columns th:nth-child(4) button")
    assert column(page, 3) == ["5", "4", "1"]
    click(page, "#completions tr:nth-child(3)")
    assert read(page, "document.getElementById('problem').textContent") == "numbers 3"
    assert read(page, "document.getElementById('facts').textContent") == "prompt 1, reward –, 1 tokens"
    assert tokens(page, "token.classList.contains('undefined')") == [True]


def test_every_signal_of_a_token_shows_where_the_mouse_is_or_the_focus(page):
    from selenium.webdriver.common.action_chains import ActionChains

    second = page.find_element("css selector", "#tokens .token:nth-child(2)")
    ActionChains(page).move_to_element(second).perform()
    shown = read(page, "document.getElementById('tip').textContent")
    assert shown == '" a" token 2 of 4, anchorFAI0.2credit1.5'
    second.click()
    press(page, "\ue014")  # the arrow to the right
    press(page, "\ue014")
    assert read(page, "document.activeElement.textContent") == " c"
    assert read(page, "document.getElementById('tip').textContent") == '" c" token 4 of 4FAIundefinedcredit1'
    assert read(page, "document.activeElement.getAttribute('aria-describedby')") == "tip"
    press(page, "\ue00c")  # escape
    assert read(page, "document.getElementById('tip').hidden")


def test_the_values_follow_their_token_where_the_page_scrolls(page):
    click(page, "h1")  # the mouse stays away
    page.execute_script("document.body.style.height = '5000px'; document.querySelector('#tokens .token').focus()")
    tops = "[document.getElementById('tip'), document.activeElement].map((of) => of.getBoundingClientRect().top)"
    gap = f"{tops}.reduce((tip, token) => tip - token)"
    before = read(page, gap)
    moved = "const done = arguments[0]; addEventListener('scroll', () => setTimeout(done), { once: true });"
    page.execute_async_script(moved + "scrollTo(0, 40)")
    assert read(page, gap) == pytest.approx(before, abs=1)
    assert not read(page, "document.getElementById('tip').hidden")
    page.execute_async_script(moved + "scrollTo(0, 3000)")  # out of sight
    assert read(page, "document.getElementById('tip').hidden")


def test_the_keyboard_reaches_everything(page):
    for _ in range(5 + 1):  # the columns, then the list
        press(page, "\ue004")
    assert read(page, "document.activeElement.tagName") == "TR"
    press(page, "\ue015")  # the arrow down
    assert read(page, "document.getElementById('problem').textContent") == "<b>bold</b>"
    selected = "[...document.querySelectorAll('#completions tr')].map((row) => row.ariaSelected)"
    assert read(page, selected) == ["false", "true", "false"]
    assert read(page, "document.activeElement.closest('table').role") == "grid"  # in which a row may be selected
    press(page, "\ue010")  # the last row
    assert read(page, selected) == ["false", "false", "true"]
    press(page, "\ue015")  # no row is behind it
    press(page, "\ue013")  # the arrow up
    assert read(page, selected) == ["false", "true", "false"]
    press(page, "\ue004")
    assert read(page, "document.activeElement.value") == "credit"
    press(page, "\ue012")  # the arrow to the left
    assert read(page, "document.querySelector('input:checked').value") == "fai"
    press(page, "\ue004")
    assert read(page, "document.activeElement.textContent") == HOSTILE[0]


def test_what_a_model_wrote_shows_as_text_and_runs_nowhere(page):
    click(page, "#completions tr:nth-child(2)")
    assert tokens(page, "token.textContent") == [*HOSTILE[:4], "&lt;↵\n"]
    assert read(page, "document.querySelectorAll('#tokens script, #tokens img, h2 b').length") == 0
    assert page.title == "Iteration 100"
    assert read(page, "performance.getEntriesByType('resource').length") == 0
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_script_that_got_into_the_page_would_not_run(browser, tmp_path):
    file = tmp_path / "tampered.html"
    file.write_text(rollout_page(responses(), "Iteration 100").replace("</body>", f"{RUN}</body>"), encoding="utf-8")
    browser.get(file.as_uri())
    assert browser.title == "Iteration 100"
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))


def test_it_is_dark_where_the_system_is(page):
    colours = "['backgroundColor', 'color'].map((name) => getComputedStyle(document.body)[name])"
    assert read(page, colours) == ["rgb(255, 255, 255)", "rgb(26, 26, 26)"]
    prefer(page, "dark")
    assert read(page, colours) == ["rgb(21, 21, 21)", "rgb(236, 236, 236)"]
