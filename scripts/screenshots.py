"""Makes the pictures of the report page and of the terminal that the documentation shows; needs chromium and tmux.

python scripts/screenshots.py --out docs/images

The runs are real: small networks on scikit-learn's digits, in a folder of their own. Pictures of the terminal are its
screen as tmux has it, drawn by the browser.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from recombine.cli.paths import filled, new_folder
from tests.report.browser import CHROMIUM, Browser

ROOT = Path(__file__).parents[1]
SESSION = "recombine-screenshots"
COLUMNS, LINES = 120, 32
COLOURS = 64
"""Of a picture: the page and the terminal have few, and pictures of a palette are a third as large."""
ENTRY = "python -m recombine.cli.command"
TRAIN = f"{ENTRY} pretrain model=cnn dataset=digits device=cpu logger=wandb logger.mode=offline"
SWEEP = f"{ENTRY} pretrain -m model=cnn,lenet5 seed=0,1 dataset=digits device=cpu logger=none engine.epochs=3"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=new_folder, default=Path("docs/images"), help="folder for the pictures")
    parser.add_argument("--rows", type=filled, default="results", help="rows of the report page")
    parser.add_argument("--only", choices=("page", "terminal"), help="a part of them")
    return parser.parse_args()


def main() -> None:
    """Make the pictures and say how large they are."""
    options = arguments()
    missing = [name for name, found in (("chromium", CHROMIUM), ("tmux", shutil.which("tmux"))) if not found]
    if missing:
        sys.exit(f"{' and '.join(missing)}: not installed")
    out = options.out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        browser = Browser(Path(folder) / "profile")
        if options.only != "terminal":
            page(browser, Path(folder), options.rows, out)
        if options.only != "page":
            terminal(browser, Path(folder), out)
        browser.close()


def page(browser: Browser, folder: Path, rows: str, out: Path) -> None:
    """The report: the overview and the table of runs on a desk, the charts on a phone, in light and dark."""
    file = folder / "report.html"
    words = [sys.executable, "-m", "recombine.cli.command", "report", "--rows", rows, "--out", str(file)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    for name, width, height, scheme, place in (
        ("report-overview", 1280, 900, "light", ""),
        ("report-overview-dark", 1280, 900, "dark", ""),
        ("report-runs", 1280, 760, "light", "runs"),
        ("report-charts", 1280, 700, "dark", "charts"),
        ("report-phone", 390, 844, "dark", ""),
        ("report-phone-light", 390, 844, "light", "charts"),
    ):
        browser.open(file, width, height, scheme)
        if place:
            browser.run(f"document.getElementById({place!r}).scrollIntoView({{behavior: 'instant'}})")
        time.sleep(1.5)  # charts are drawn once they are seen
        save(browser, out / f"{name}.png")
    assert not browser.console, browser.console


def terminal(browser: Browser, folder: Path, out: Path) -> None:
    """A run while it trains and at its end, a multirun, and the viewer of wandb on what the run left."""
    tmux("new-session", "-d", "-s", SESSION, "-x", str(COLUMNS), "-y", str(LINES), "-c", str(folder), "bash --norc")
    try:
        places = {"PYTHONPATH": ROOT / "src", "HF_HUB_OFFLINE": 1, "PATH": f"{Path(sys.executable).parent}:$PATH"}
        type_in("; ".join(f'export {name}="{value}"' for name, value in places.items()) + "; PS1='$ '; clear")
        time.sleep(1)
        type_in(f"clear; {TRAIN} engine.epochs=8")
        wait_for(lambda text: "epoch 3" in text)
        time.sleep(1)
        draw(browser, folder, out / "terminal-training.png")
        wait_for(lambda text: "folder   outputs" in text)
        draw(browser, folder, out / "terminal-run.png")
        type_in(f"clear; {SWEEP}")
        wait_for(lambda text: "show their rows" in text)
        draw(browser, folder, out / "terminal-multirun.png")
        (run,) = folder.glob("outputs/pretrain/*/wandb/offline-run-*/*.wandb")
        type_in(f"clear; wandb leet run {shlex.quote(str(run.relative_to(folder)))}")
        wait_for(lambda text: "Finished" in text)
        time.sleep(3)
        draw(browser, folder, out / "terminal-leet.png")
    finally:
        tmux("kill-session", "-t", SESSION)


def tmux(*words: str) -> str:
    """What a command of tmux prints."""
    return subprocess.run(["tmux", *words], check=True, capture_output=True, text=True).stdout


def type_in(line: str) -> None:
    """Type a line into the terminal."""
    tmux("send-keys", "-t", SESSION, "-l", line)
    tmux("send-keys", "-t", SESSION, "Enter")


def wait_for(seen: Callable[[str], bool], seconds: float = 300) -> None:
    """Until the screen shows something."""
    deadline = time.monotonic() + seconds
    while not seen(tmux("capture-pane", "-p", "-t", SESSION)):
        if time.monotonic() > deadline:
            sys.exit(tmux("capture-pane", "-p", "-t", SESSION))
        time.sleep(0.2)


def draw(browser: Browser, folder: Path, file: Path) -> None:
    """The screen of the terminal as a picture."""
    screen = Text.from_ansi(tmux("capture-pane", "-e", "-p", "-t", SESSION).rstrip())
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True, color_system="truecolor")
    console.print(screen, soft_wrap=True)
    html = console.export_html(theme=MONOKAI, inline_styles=True)
    html = re.sub("[\u2801-\u28ff]", r"<b>\g<0></b>", html)  # dots of curves come from a font of another width
    font = "font:15px/1.2 'DejaVu Sans Mono',FreeMono,monospace!important"
    dots = "display:inline-block;width:calc(1ch/.8);font-size:.8em;font-weight:400"
    style = f"<style>html{{overflow:hidden}} body{{margin:12px}} pre{{{font}}} b{{{dots}}}</style>"
    (folder / "screen.html").write_text(html.replace("</head>", f"{style}</head>"), encoding="utf-8")
    browser.open(folder / "screen.html", 9 * COLUMNS + 30, 18 * len(screen.plain.splitlines()) + 30)
    save(browser, file)


def save(browser: Browser, file: Path) -> None:
    """A picture of the window with few colours."""
    file.parent.mkdir(parents=True, exist_ok=True)
    browser.screenshot(file)
    with Image.open(file) as picture:
        small = picture.convert("RGB").quantize(COLOURS)
    small.save(file, optimize=True)
    print(f"{file.name}: {file.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
