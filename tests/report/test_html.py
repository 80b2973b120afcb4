"""The page stands alone, is well formed, and hides neither failures nor strange names."""

import base64
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.report.html import page
from recombine.report.spec import load_specs

SPECS = load_specs(Path(__file__).resolve().parents[2] / "config" / "table")
VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Collects tags, attributes and text, and insists that tags are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.text, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)


def read(document):
    reader = Reader()
    reader.feed(document)
    reader.close()
    assert not reader.open
    return reader


@pytest.fixture(scope="module")
def document(flip_rows, pretrain_rows):
    return page([*flip_rows, *pretrain_rows], SPECS, "Results & more")


def test_nothing_is_loaded_from_elsewhere(document):
    reader = read(document)
    for tag, name, value in reader.attributes:
        if name in ("src", "href", "action", "data", "srcset"):
            assert value.startswith(("#", "data:image/svg+xml;base64,")), (tag, name, value[:60])
    assert "link" not in reader.tags and "iframe" not in reader.tags
    assert "url(" not in document and "@import" not in document and "http" not in "".join(reader.text)


def test_links_lead_to_sections(document):
    attributes = read(document).attributes
    ids = {value for _, name, value in attributes if name == "id"}
    assert {value[1:] for _, name, value in attributes if name == "href"} <= ids


def test_every_picture_is_a_drawing_without_links(document):
    sources = [value for tag, name, value in read(document).attributes if (tag, name) == ("img", "src")]
    assert len(sources) == 6
    for source in sources:
        tree = ElementTree.fromstring(base64.b64decode(source.partition(",")[2]))
        links = [v for e in tree.iter() for k, v in e.attrib.items() if k.endswith("href")]
        assert all(link.startswith(("#", "data:")) for link in links)


def test_failures_stand_on_top_with_their_errors(document):
    text = "".join(read(document).text)
    assert text.index("2 runs did not finish") < text.index("flips · digits")
    assert "loss is not finite between steps 50 and 100" in text
    assert "<script>alert(1)</script> & 17" in text
    assert "<script>alert(1)" not in document


def test_all_values_of_a_table_are_there(document, flip_rows):
    text = read(document).text
    assert all(f"{row.metrics['rho_pos']:.2f}" in text for row in flip_rows)
    assert "python main_pretrain.py model=mlp_32 seed=1" in text


def test_strange_names_stay_text(flip_rows):
    evil = "<img src=x onerror=alert(1)>"
    rows = [replace(row, cell={**row.cell, "dataset": evil}, run=evil) for row in flip_rows]
    reader = read(page(rows, SPECS, evil))
    assert not any(name.startswith("on") for _, name, _ in reader.attributes)
    assert evil in "".join(reader.text)


def test_an_entry_without_tables_shows_everything():
    rows = [Row({"parent": "a"}, {"gain": 1.25, "loss": 3e-7}, entry="graft", run="a-0")]
    text = "".join(read(page(rows, SPECS)).text)
    assert "All measured values" in text and "1.25" in text and "3e-07" in text


def test_only_failures(pretrain_rows):
    failed = [row for row in pretrain_rows if row.status != "ok"]
    assert "2 runs did not finish" in "".join(read(page(failed, SPECS)).text)


def test_no_rows_is_an_error():
    with pytest.raises(ConfigError, match="no rows"):
        page([], SPECS)


def test_settings_have_sections_of_their_own(flip_rows):
    rows = [replace(row, cell={**row.cell, "fraction": f}, run=str(f)) for row in flip_rows for f in (0.1, 1.0)]
    document = page(rows, SPECS)
    text = "".join(read(document).text)
    assert "flips · digits, test, fraction 0.1" in text and "flips · digits, test, fraction 1.0" in text
    assert document.count("data:image/svg+xml") == 10 and "warning" not in text
