"""The report: one file that needs nothing else and says what was found."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from evaluation.samples import a_pair, good_figures, good_result
from semipermeable.evaluation.demo_bars import verdicts_of
from semipermeable.evaluation.records import BeforeAfter
from semipermeable.evaluation.report import gallery_grid, render_report
from semipermeable.rates import Rate

VOID = {"meta", "img", "br", "link", "input"}


class Checker(HTMLParser):
    """Collects references and text; fails on tags that do not nest."""

    def __init__(self):
        super().__init__()
        self.open, self.references, self.tags, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for key, value in attrs if key in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(html):
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    return checker


def with_verdicts(result):
    return dataclasses.replace(result, verdicts=verdicts_of(result))


@pytest.fixture(scope="module")
def html():
    return render_report(with_verdicts(good_result()), [a_pair(), a_pair("a 3d icon of a dog")])


def test_nothing_is_fetched(html):
    found = parsed(html)
    assert found.references
    assert all(reference.startswith("data:image/png;base64,") for reference in found.references)
    assert not {"script", "link", "iframe"} & set(found.tags)
    assert not re.search(r"https?://|url\(|@import", html)


def test_text_is_escaped(html):
    assert "a neon icon of a &lt;b&gt;cat&lt;/b&gt;" in html
    assert "a &lt;fast&gt; one &amp; more" in html


def test_figures_bars_and_reproduction_are_there(html):
    text = " ".join(" ".join(parsed(html).text).split())
    for words in (
        "“cat” and “neon” erased; every unrelated picture is the same, bit for bit",
        "97.9 % [92.7, 99.4]",
        "106 of 106",
        "All 15 bars reached",
        "make demo",
        "12 of 12",
        "2544 of 2544",
        "γ cat = 1",
        "they say nothing about Stable Diffusion",
    ):
        assert words in text


def test_it_suits_phones_and_dark_rooms(html):
    assert "width=device-width" in html
    assert "prefers-color-scheme: dark" in html


def test_a_missed_bar_is_in_the_first_lines():
    bad = good_figures(target=BeforeAfter(Rate(95, 96), Rate(40, 96)))
    text = " ".join(
        parsed(render_report(with_verdicts(good_result(concepts=(bad, good_figures("neon", "style")))), [])).text
    )
    assert "1 of 15 bars missed" in " ".join(text.split())
    assert "cat: target after is 0.417" in " ".join(text.split())
    assert "“neon” not erased" in " ".join(text.split())


def test_a_changed_picture_is_in_the_headline():
    text = " ".join(parsed(render_report(with_verdicts(good_result(unrelated_equal=100)), [])).text)
    assert "6 of 106 unrelated pictures changed, and none should" in text


def test_sheet_of_pairs():
    sheet = gallery_grid([a_pair()] * 4)
    assert sheet.width > 3 * 2 * 128
    assert sheet.height > 2 * 128
