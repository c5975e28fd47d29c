"""The page of a data set: what the data says, nothing of it as markup, no request, one script that is known by hash."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from strop.data.findings import Finding, Instance
from strop.data.records import Place
from strop.errors import UsageError
from strop.review.page import write_survey
from strop.review.survey import Survey, select

Take = Callable[..., Survey]


class Page(HTMLParser):
    """A page's tags and text, scripts and styles apart."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.script, self._inside = "", "", ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else self._inside

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag == self._inside else self._inside

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.script += data
        elif not self._inside:
            self.text += data


def way_limit(surveyed: Take) -> int:
    """A limit that leaves the last answer all but its end."""
    (longest,) = select(surveyed(data__eval=0), [83], None, 1).samples
    return len(longest) - 12


def page_of(survey: Survey, folder: Path, *numbers: int, most: int = 50) -> Page:
    target = folder / "page.html"
    write_survey(survey, select(survey, numbers, None, most), target)
    return Page(target)


def test_the_page_says_what_is_there(surveyed: Take, tmp_path: Path) -> None:
    survey = surveyed(data__eval=2, data__max_tokens=200)
    found = page_of(survey, tmp_path, most=82)
    values = [attributes["value"] for tag, attributes in found.tags if tag == "data"]
    assert values == ["80", "2", "4", str(survey.tokens), str(survey.learned_tokens), str(len(survey.findings))]
    assert len(survey.refused) == 4
    for text in ("longer than 200 tokens", "in force", *(refusal.reason for refusal in survey.refused)):
        assert text in found.text
    assert "Equal, token for token, in all" in found.text
    charts = [ElementTree.fromstring(svg) for svg in re.findall(r'<svg [^>]*class="chart".*?</svg>', found.source)]
    assert len(charts) == 2
    samples = [attributes for tag, attributes in found.tags if tag == "article" and "data-number" in attributes]
    assert [one["data-number"] for one in samples] == [str(number) for number in range(1, 83)]
    one = survey.dataset.learned[0]
    assert f'<i title="{one.tokens[0]} ' in found.source


def test_every_token_of_a_sample_is_there(surveyed: Take, tmp_path: Path) -> None:
    survey = surveyed(data__eval=0)
    found = page_of(survey, tmp_path, 81)
    (example,) = select(survey, [81], None, 1).samples
    titles = [attributes["title"] or "" for tag, attributes in found.tags if tag == "i"]
    ids = [int(number) for title in titles for number in re.match(r"[\d ]+", title)[0].split()]  # type: ignore[index]
    assert ids == example.tokens.tolist()
    learned = sum(len(re.match(r"[\d ]+", title)[0].split()) for title in titles if " learned" in title)  # type: ignore[index]
    assert learned == int(example.learned.sum())
    assert "一共" in found.text
    assert "🙂" in found.text


def test_a_cut_is_marked_where_it_is(surveyed: Take, tmp_path: Path) -> None:
    for way, behind in (("cut_prompt", "user↵\n"), ("cut_end", "word·wo")):
        survey = surveyed(data__eval=0, data__max_tokens=way_limit(surveyed), data__overlong=way)
        found = page_of(survey, tmp_path, 83)
        assert found.text.count("cut here") == 1
        assert "tokens are cut" in found.text
        assert found.text.partition("cut here")[0].endswith(behind)


def test_so_many_samples_and_no_more(surveyed: Take, tmp_path: Path) -> None:
    found = page_of(surveyed(data__eval=0), tmp_path, most=5)
    assert sum(tag == "article" and "data-number" in attributes for tag, attributes in found.tags) == 5
    assert "The first 5 of 83 samples; strop data shows any of them" in " ".join(found.text.split())


def test_a_page_holds_no_more_tokens_than_a_telephone_can(
    surveyed: Take, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from strop.review import page as room

    survey = surveyed(data__eval=0)
    monkeypatch.setattr(room, "_MOST_TOKENS", 20)
    monkeypatch.setattr(room, "_MOST_PAGE_TOKENS", 50)
    found = page_of(survey, tmp_path)
    assert found.text.count("the first 20 tokens are shown") == 2
    assert "The first 2 of 83 samples" in found.text
    assert sum(tag == "i" for tag, _ in found.tags) == 40
    monkeypatch.setattr(room, "_MOST_PAGE_TOKENS", 5)
    assert "The first 1 of 83 samples" in page_of(survey, tmp_path).text


def test_nothing_of_the_data_becomes_markup(surveyed: Take, tmp_path: Path) -> None:
    from dataclasses import replace

    survey = surveyed(data__eval=0)
    text = "</li><script>alert(3)</script><img src=x onerror=alert(4)>\"'"
    finding = Finding(text, "warn", text, text, 1, (Instance(Place(text, 1), text),))
    trapped = page_of(replace(survey, findings=[finding]), tmp_path, 82)
    plain = page_of(replace(survey, findings=[replace(finding, kind="k", what="w")]), tmp_path, 1)
    assert {tag for tag, _ in trapped.tags} == {tag for tag, _ in plain.tags}
    assert [tag for tag, _ in trapped.tags].count("script") == 1
    assert "alert" not in trapped.script
    assert trapped.text.count("alert(3)") >= 5
    assert not [name for _, attributes in trapped.tags for name in attributes if name.startswith("on")]
    assert "\x1b" not in trapped.source


def test_the_page_asks_for_nothing_and_runs_one_script(surveyed: Take, tmp_path: Path) -> None:
    found = page_of(surveyed(), tmp_path)
    assert not re.search(r"url\(|@import|<link|\bsrc=|<img", found.source.replace("src=x", ""))
    assert {attributes["href"] for _, attributes in found.tags if "href" in attributes} == {
        f"#{name}" for name in ("account", "lengths", "refused", "findings", "prompts", "samples")
    }
    policy = next(attributes["content"] for tag, attributes in found.tags if attributes.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(found.script.encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
    assert f"script-src 'sha256-{digest}';" in policy


def test_a_page_that_cannot_be_written_says_so(surveyed: Take, tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        page_of(surveyed(), tmp_path)
