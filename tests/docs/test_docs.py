"""The documentation: it builds without a warning or a network, its commands parse, its generated pages are current."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name

import pytest
from hydra._internal.utils import get_args_parser

from recombine.cli.command import TOOLS
from recombine.cli.entries import ENTRIES
from recombine.cli.overrides import compose_all
from recombine.core.files import CONFIG_DIR
from recombine.run.config import validate
from tests import forked

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"(<!-- needs: [^\n]+ -->\n)?```bash\n(.*?)```", re.DOTALL)
INLINE = re.compile(r"`((?:python main_|python scripts/|recombine )[^`\n]+)`")


def fenced(text):
    """Commands of all bash blocks that need nothing but a clone, a word list each."""
    for needs, block in FENCE.findall(text):
        if not needs:
            for line in block.replace("\\\n", " ").splitlines():
                # Of `a && b` and `a | b` each part is a command.
                for part in re.split(r" && | \| ", line):
                    yield shlex.split(part, comments=True)


def command(words):
    """Entry or tool and its arguments; None if the words start something else."""
    if words[:1] == ["recombine"] and len(words) > 1:
        return words[1], words[2:]
    if words[:1] == ["python"] and len(words) > 1:
        found = re.fullmatch(r"main_(\w+)\.py|scripts/(\w+)\.py", words[1])
        return (found[1] or found[2], words[2:]) if found else None
    return None


COMMANDS = sorted({shlex.join(words) for page in PAGES for words in fenced(page.read_text()) if command(words)})


def compose_problems(config, arguments, schema=None):
    """What is wrong with overrides, as far as no data or weights are needed to tell."""
    arguments = [word for word in arguments if word != "--dry-run"]  # a flag of ours, which Hydra does not know
    given = get_args_parser().parse_args(sorted(arguments, key=lambda word: "=" in word and not word.startswith("-")))
    composition = compose_all(str(CONFIG_DIR), given.config_name or config, given.overrides, sweep=given.multirun)
    problems = list(composition.problems)
    if schema and composition.cfg is not None:
        problems += validate(composition.cfg, schema, rules=False)
    return problems


@pytest.fixture
def reference(monkeypatch):
    """The generators of the reference pages."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    yield import_module("reference.cli")
    for name in [name for name in sys.modules if name.partition(".")[0] == "reference"]:
        del sys.modules[name]


@pytest.mark.parametrize("text", COMMANDS)
def test_a_command_in_a_bash_block_parses(text, reference):
    name, arguments = command(shlex.split(text))
    experiments = [word.partition("=")[2] for word in arguments if word.startswith("experiment=")]
    for experiment in experiments:  # that each of them composes with all of its sweep is tested elsewhere
        assert (CONFIG_DIR / "experiment" / f"{experiment}.yaml").is_file()
    if experiments:
        return
    if name in ENTRIES:
        entry = ENTRIES[name]
        assert compose_problems(entry.config, arguments, resolve_name(entry.settings)) == []
    elif name in TOOLS:
        parser = reference.parser_of(import_module(f"recombine.cli.{name}"))
        if parser is None:
            assert compose_problems("prepare/prepare", arguments) == []
        else:
            parser.parse_args(arguments)
    else:
        assert name.startswith("-") or (ROOT / "scripts" / f"{name}.py").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_text_exist_and_so_do_their_experiments_and_tables(page):
    for text in INLINE.findall(page.read_text()):
        name, arguments = command(text.split()) or ("", [])
        known = name in ENTRIES or name in TOOLS or (ROOT / "scripts" / f"{name}.py").is_file()
        assert known or not name or name.startswith(("<", "-")), text
        for word in arguments:
            if word.startswith("experiment="):
                assert (CONFIG_DIR / "experiment" / f"{word.partition('=')[2]}.yaml").is_file(), text


def test_tables_that_pages_name_exist():
    for page in (ROOT / "docs" / "methods").glob("*.md"):
        for name in re.findall(r"\| `((?:flips|transfer|multi_teacher|pnc|stitch|patch)/\w+)`", page.read_text()):
            kinds = ("table", "experiment")
            assert any((CONFIG_DIR / kind / f"{name}.yaml").is_file() for kind in kinds), f"{page.name}: {name}"


def test_method_pages_name_every_method():
    pages = {"transfer": "transfer", "pnc": "clone", "stitch": "stitch", "patch": "patch"}
    for entry, page in pages.items():
        text = (ROOT / "docs" / "methods" / f"{page}.md").read_text()
        for group in ("method", "search"):
            folder = CONFIG_DIR / entry / group
            for file in folder.rglob("*.yaml"):
                name = file.relative_to(folder).with_suffix("").as_posix()
                assert re.search(rf"[`=]{re.escape(name)}`", text), f"{page}.md does not name {group}={name}"


def test_method_pages_name_every_experiment_and_table():
    pages = {"flips": "flips", "transfer": "transfer", "multi_teacher": "transfer", "patch": "patch"}
    for entry, page in pages.items():
        text = (ROOT / "docs" / "methods" / f"{page}.md").read_text()
        for kind in ("experiment", "table"):
            for file in (CONFIG_DIR / kind / entry).glob("*.yaml"):
                name = f"{entry}/{file.stem}"
                assert re.search(rf"[`=]{name}`", text), f"{page}.md does not name the {kind} {name}"


def test_the_python_of_the_patch_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "methods" / "patch.md").read_text(), re.DOTALL)
    names: dict = {}
    for block in found:
        exec(compile(block, "patch.md", "exec"), names)
    merged, images = names["merged"], names["images"]
    assert len(found) > 5 and merged(images).shape == names["lora"](images).shape == (8, 3)
    assert names["network"].get_classifier().out_features == 10


def test_result_pages_show_every_cell_that_was_measured():
    for page in (ROOT / "docs" / "results").glob("*.md"):
        assert not re.search(r"not averaged|\| mixed", page.read_text()), f"{page.name} mixes rows of unlike settings"


def test_links_of_files_beside_the_site_lead_somewhere():
    for page in PAGES[:2]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert link.startswith("http") or (page.parent / link).exists(), link


def check_pages():
    sys.path.insert(0, str(ROOT / "scripts"))
    sys.argv = ["docs.py", "--check"]
    sys.exit(importlib.import_module("docs").main())


def test_generated_pages_are_current():
    done = forked.call(check_pages)
    assert done.returncode == 0, done.stderr


def test_the_site_builds_without_a_warning_or_a_network(tmp_path):
    pytest.importorskip("mkdocs", reason="pip install '.[docs]'")
    pytest.importorskip("mkdocstrings", reason="pip install '.[docs]'")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | nowhere | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == ""
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', page.read_text())
        assert loaded == [], f"{page.name} loads {loaded}"


@pytest.mark.slow
def test_result_pages_are_what_the_report_writes(tmp_path, monkeypatch):
    """Several pages in one call, each with the very text that is committed."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "README.md", tmp_path)
    pages = [tmp_path / "README.md", *sorted((tmp_path / "docs" / "results").glob("*.md"))]
    words = ["report", "--rows", str(ROOT / "results"), "--readme", *map(str, pages)]
    monkeypatch.setattr(sys, "argv", [*words, "--pictures", str(tmp_path / "docs" / "images")])
    import_module("recombine.cli.report").main()
    for page in pages:
        committed = ROOT / page.relative_to(tmp_path)
        assert page.read_text() == committed.read_text(), (
            f"{committed.name}: run scripts/report.py, see docs/results.md"
        )
