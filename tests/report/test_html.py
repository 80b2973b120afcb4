"""The page stands alone, opens quickly, hides neither failures nor strange names, and works in a browser."""

import json
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from recombine.core.errors import ConfigError
from recombine.core.results import read_rows
from recombine.core.types import Row
from recombine.report.html import page
from recombine.report.spec import load_specs
from tests.report.browser import CHROMIUM, Browser

ROOT = Path(__file__).resolve().parents[2]
SPECS = load_specs(ROOT / "config" / "table")
VOID = {"meta", "input"}


class Reader(HTMLParser):
    """Collects tags, attributes, text and the data of the script, and insists that tags are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.text, self.tags, self.data = [], [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.is_data = ("id", "data") in attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script" and self.is_data:
            self.data += data
        elif not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)


def read(document):
    reader = Reader()
    reader.feed(document)
    reader.close()
    assert not reader.open
    return reader


@pytest.fixture(scope="module")
def document(flip_rows, pretrain_rows):
    return page([*flip_rows, *pretrain_rows], SPECS, "Results & more", {"flips": "what differs"})


def test_nothing_is_loaded_from_elsewhere_and_links_lead_somewhere(document):
    reader = read(document)
    ids = {value for _, name, value in reader.attributes if name == "id"}
    for tag, name, value in reader.attributes:
        if name in ("src", "href", "action", "data", "srcset"):
            assert value[0] == "#" and value[1:] in ids, (tag, name, value[:60])
    assert "link" not in reader.tags and "iframe" not in reader.tags
    assert "@import" not in document and "http" not in "".join(reader.text)


def test_every_row_is_there_with_its_run(document, flip_rows, pretrain_rows):
    data = json.loads(read(document).data)
    assert len(data["rows"]) == len(flip_rows) + len(pretrain_rows)
    for row, there in zip([*flip_rows, *pretrain_rows], data["rows"], strict=True):
        assert there["metrics"] == pytest.approx(row.metrics, rel=1e-4) and there["cell"] == row.cell
        assert (there["status"], there["error"]) == (row.status, row.error or "")
    curves = [there["series"] for there in data["rows"] if there["entry"] == "pretrain" and there["status"] == "ok"]
    assert all(len(curve["accuracy"]) == len(curve["epoch"]) == 8 for curve in curves)
    assert data["runs"]["mlp_32-1"]["command"] == "python main_pretrain.py model=mlp_32 seed=1"
    text = read(document).text
    assert all(f"{row.metrics['rho_pos']:.2f}" in text for row in flip_rows) and "what differs" in text


def test_configs_are_told_once_and_then_by_their_differences():
    config = {"lr": 0.1, "engine": {"epochs": 3, "precision": "fp32"}}
    other = {"lr": 0.1, "engine": {"epochs": 5}, "new": [1]}
    rows = [
        Row({"a": k}, {"x": 1.0}, entry="graft", run=k, provenance={"config": c})
        for k, c in (("1", config), ("2", other))
    ]
    runs = json.loads(read(page(rows, SPECS, links={"2": ["2/config.yaml"]})).data)["runs"]
    assert runs["1"]["config"] == {"lr": 0.1, "engine.epochs": 3, "engine.precision": "fp32"}
    assert runs["2"]["config"] == {"engine.epochs": 5, "engine.precision": None, "new": [1]}
    assert runs["2"]["links"] == ["2/config.yaml"] and runs["1"]["links"] == []


def test_strange_names_stay_text(flip_rows):
    evil = "<img src=x onerror=alert(1)></script>"
    rows = [replace(row, cell={**row.cell, "dataset": evil}, run=evil) for row in flip_rows]
    reader = read(page(rows, SPECS, evil))
    assert not any(name == "onerror" for _, name, _ in reader.attributes) and evil in "".join(reader.text)


def test_an_entry_without_tables_shows_everything():
    rows = [Row({"parent": "a"}, {"gain": 1.25, "loss": 3e-7, "odd": float("nan")}, entry="graft", run="a-0")]
    text = "".join(read(page(rows, SPECS)).text)
    assert "All measured values" in text and "1.25" in text and "3e-07" in text


def test_no_rows_is_an_error():
    with pytest.raises(ConfigError, match="no rows"):
        page([], SPECS)


@pytest.mark.slow
def test_a_thousand_rows_take_five_seconds_of_work_and_five_megabytes():
    rows = read_rows(ROOT / "results")
    rows = [*rows, *(replace(row, run=f"{row.run}-again") for row in rows)][:1000]
    start = time.process_time()
    document = page(rows, SPECS)
    assert time.process_time() - start < 5 and len(document.encode()) < 5e6
    curves = {name: [k / 7 for k in range(300)] for name in ("epoch", "accuracy", "loss", "transfer_delta")}
    long = [replace(row, series=row.series | curves) for row in rows]
    document = page(long, SPECS)
    assert len(document.encode()) < 5e6
    data = json.loads(read(document).data)
    assert data["thinned"] and "thinned" in document
    for row in data["rows"]:
        series = row["series"]
        assert 20 <= len(series["epoch"]) == len(series["loss"]) < 300
        assert series["epoch"][0] == 0 and series["loss"] == series["epoch"] and series["epoch"][-1] == 42.714


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


LINES = "[...document.querySelectorAll('#run-table tbody tr')].map(row => [...row.cells].map(cell => cell.textContent))"
DRAWN = (
    "document.querySelectorAll('#chart svg .mark-symbol path, #chart svg .mark-rect path, #chart svg .mark-line path')"
)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_the_page_works_in_a_browser(document, browser, tmp_path, width, scheme, flip_rows):
    (tmp_path / "report.html").write_text(document)
    browser.open(tmp_path / "report.html", width, scheme=scheme)
    everything = browser.run(LINES)
    browser.click('button.choose[data-entry="flips"]')
    flips = browser.run(LINES)
    assert len(flips) == len(flip_rows) < len(everything)
    heads = browser.run("[...document.querySelectorAll('#run-table th')].map(head => head.textContent)")
    place = heads.index("rho pos")
    for way in (1, -1):  # the second click turns the order
        browser.click(f"#run-table th:nth-child({place + 1}) button")
        shown = [float(line[place]) for line in browser.run(LINES)]
        assert shown == sorted(shown, reverse=way < 0) and len(set(shown)) > 9
    browser.click("#search")
    browser.type("forest linear")
    assert browser.run(LINES) == []
    browser.run("document.getElementById('search').value = ''")
    browser.click("#search")
    browser.type("forest logistic")
    assert len(browser.run(LINES)) == 2
    browser.click("#run-table .open")
    assert "python main_flips.py dataset=digits" in browser.run("document.querySelector('td.details').textContent")
    browser.run("new Promise(done => setTimeout(done, 300))")
    assert browser.run(f"{DRAWN}.length") > 0
    assert browser.run("document.documentElement.scrollWidth") <= width
    paper = browser.run("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
    assert (sum(paper[:3]) > 600) == (scheme == "light")
    assert browser.console == []


@pytest.mark.slow
def test_charts_show_what_is_chosen(document, browser, tmp_path, pretrain_rows):
    (tmp_path / "report.html").write_text(document)
    browser.open(tmp_path / "report.html")
    browser.click('button.choose[data-entry="pretrain"]')
    wait = "new Promise(done => setTimeout(done, 300))"
    browser.run(wait)
    assert browser.run("document.getElementById('chart-kind').value") == "curves"
    lines = "document.querySelectorAll('#chart svg .mark-line path').length"
    assert browser.run(lines) == sum(row.status == "ok" for row in pretrain_rows)
    browser.click("#run-table tbody tr:nth-child(2) input")
    browser.run(wait)
    assert browser.run(lines) == 1
    assert browser.console == []


@pytest.mark.slow
def test_the_mouse_on_a_network_of_a_front_shows_its_genes_its_cost_and_both_accuracies(browser, tmp_path):
    row = next(row for row in read_rows(ROOT / "results" / "stitch") if any(row.series["front_on"]))
    (tmp_path / "report.html").write_text(page([row], SPECS))
    browser.open(tmp_path / "report.html")
    wait = "new Promise(done => setTimeout(done, 300))"
    browser.run(wait)
    assert browser.run("document.getElementById('chart-kind').value") == "fronts"
    shown = set()
    count = browser.run("document.querySelectorAll('#chart svg .mark-symbol.role-mark path').length")
    assert count == len(row.series["front_cost"]) + 3
    for place in range(1, count + 1):
        browser.hover(f"#chart svg .mark-symbol.role-mark path:nth-of-type({place})")
        browser.run(wait)
        cells = browser.run(
            "[...document.querySelectorAll('#vg-tooltip-element td')].map(cell => cell.innerText.trim())"
        )
        found = dict(zip(cells[::2], cells[1::2], strict=True))
        names = ("stitches on", "output", "multiply-adds", "search accuracy", "test accuracy")
        shown.add(tuple(found[name] for name in names))
    columns = (row.series[f"front_{name}"] for name in ("on", "output", "cost", "search_accuracy", "test_accuracy"))
    genes = {
        (" ".join(map(str, on)) or "none", ("A", "B", "A + B")[output], f"{cost:,}", f"{search:.5g}", f"{test:.5g}")
        for on, output, cost, search, test in zip(*columns, strict=True)
    }
    assert shown & genes and any(on != "none" for on, *_ in shown & genes)
    assert browser.console == []
