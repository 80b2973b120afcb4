"""Broken commands of every tool."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from . import Case
from .runs import make_networks
from .settings import judge

__all__ = ["try_tools"]

WRONG = [
    *("nonsense", "predict", "predict {image}", "predict --model {net}", "predict {image} --model nothing"),
    *("predict {image} --model timm:nothing", "predict {image} --model {empty}", "predict {image} --model {image}"),
    *("predict {nowhere} --model {net}", "predict {empty} --model {net}", "predict {folder} --model {net}"),
    *("predict {image} --model {net} --classes {nowhere}", "predict {image} --model {net} --classes {empty}"),
    *("predict {image} --model {net} --patch {nowhere}", "predict {image} --model {net} --patch {net}"),
    *("predict {image} --model {net} --clone {net}", "predict {image} --model {net} --source {net}"),
    *("predict {image} --model {net} --top banana", "predict {image} --model {net} --nonsense"),
    *("artifacts", "artifacts list", "artifacts list {nowhere}", "artifacts list {empty}", "artifacts list {image}"),
    *("artifacts attach {empty} {net}", "artifacts detach {net} x", "artifacts detach {nowhere} x"),
    *("artifacts export {net} {folder}/x", "artifacts export {net} {folder}/x --form banana"),
    *("table nothing", "table flips/pairs --rows {nowhere}", "table flips/pairs --rows {bad}", "table --nonsense"),
    *("table flips/pairs --rows {rows} --where banana", "table flips/pairs --rows {rows} --where a=b"),
    *("table flips/pairs --rows {results} --format banana", "table flips/pairs --rows {results} --out a.b"),
    *("table flips/pairs --rows {results} --out /proc/x/y.md", "table flips/pairs --rows {results} --out {empty}/y.md"),
    *("report --rows {nowhere}", "report --rows {bad}", "report --nonsense", "report --rows {rows} --out {folder}"),
    *("report --rows {rows} --out /proc/x/y.html", "report --rows {rows} --out {empty}/y.html"),
    *("report --rows {rows} --readme {nowhere}", "report --rows {rows} --readme {folder}"),
    *("report --rows {rows} --publish {empty}", "report --rows {rows} --publish /dev/null"),
    *("report --rows {rows} --pictures {empty}", "report --rows {rows} --pictures /proc/x"),
    *("inspect_data", "inspect_data {nowhere}", "inspect_data {empty}", "inspect_data {folder}", "inspect_data --x"),
    *("dashboards --entry nothing", "dashboards --rows {nowhere} --out {empty}", "dashboards --nonsense"),
    *("prepare dataset=nothing", "prepare dataset.nonsense=1", "prepare dataset=[[1]]", "prepare nonsense"),
    *("prepare dataset=imagenet data_root={folder}", "prepare dataset=imagenet data_root={empty}"),
    *("prepare dataset=digits dataset.fraction=2", "prepare dataset=digits rewrite=banana"),
    *(
        "doctor --nonsense",
        "export",
        "export x.onnx",
        "export x.nonsense --model {net}",
        "export x.onnx --model nothing",
    ),
    *("export {folder} --model {net}", "export x.pt2 --model {net} --patch {empty}"),
    *("export /proc/x.pt2 --model {net}", "export x.pt2 --model {net} --images {nowhere}"),
    *("improve", "improve --images {nowhere} --network {net}", "improve --images {empty} --network {net}"),
    *("improve --images {folder} --network {net}", "improve --images {folder} --network {net} --budget banana"),
    *("improve --images {folder} --network {net} --budget -1m", "improve --images {pictures} --network nothing"),
    *("improve --images {pictures} --network {net} --batch-size banana", "improve --images {pictures}"),
    *("improve --images {pictures} --network {net} --batch-size 0", "improve --network {net}"),
    *("improve --images {pictures} --network {net} --zoo {nowhere}", "improve --images {pictures} --network {empty}"),
    *("improve --images {pictures} --network {net} --out {empty}", "improve --images {empty} --network {net}"),
    *(f"improve --images {{pictures}} --network {{net}} --out {place}" for place in ("''", "{empty}/x", "/proc/x")),
    *("improve --images '' --network {net}", "improve --images {pictures} --network {net} --zoo ''"),
    *("improve --images {pictures} --network {net} --weights-root {empty}", "inspect_data ''", "artifacts list ''"),
    *(f"export {file} --model {{net}}" for file in ("{empty}/x.pt2", "{folder}", "''", "/proc/x.pt2")),
    *(f"export x.pt2 --model {{net}} --model-card {file}" for file in ("{empty}/x.md", "{folder}", "''", "/proc/x.md")),
    *(f"export x.pt2 --model {{net}} --{key} ''" for key in ("images", "classes", "patch", "clone", "source")),
    *(f"report --rows {{rows}} --out {file}" for file in ("''", "{empty}/x.html", "{folder}")),
    *(f"report --rows {{rows}} --{key} {place}" for key in ("publish", "pictures") for place in ("''", "{empty}/x")),
    *("report --rows {rows} --readme ''", "report --rows {rows} --readme {image}", "report --rows ''"),
    *(f"table flips/pairs --rows {{results}} --out {file}" for file in ("''", "{folder}", "{empty}/x.md")),
    *(f"predict {{image}} --model {{net}} --{key} {{empty}}" for key in ("masks", "boxes", "weights-root")),
    *("predict '' --model {net}", "predict {image} --model ''", "predict {image} --model {net} --patch {folder}"),
    *(f"doctor {key}_root={place}" for key in ("data", "weights", "cache") for place in ("", "{empty}", "{empty}/x")),
    *(f"prepare dataset=digits {key}" for key in ("cache_root={empty}/x", "cache_root=", "cache_root=/proc/x")),
]
"""Commands with a word that is missing, unknown or of a wrong kind, or with files that are not what they should be."""


SHORT = ("/y.", "rewrite=banana", "--source {net}", "--batch-size 0", "{empty}/x", "--publish ''")
"""What the short form tries."""


def make_places(folder: Path) -> dict[str, str]:
    """What the commands name: networks, rows and pictures that are right, and files that are not."""
    import numpy as np
    from PIL import Image

    from recombine.core.results import write_rows
    from recombine.core.types import Row

    make_networks(folder)
    for name in ("folder", "rows", "bad"):
        (folder / name).mkdir()
    (folder / "empty").touch()
    (folder / "bad" / "row.json").touch()
    cell = {"model": "cnn", "dataset": "digits", "split": "test"}
    write_rows(folder / "rows", [Row(cell=cell, metrics={"accuracy": 50.0}, entry="pretrain", run="r")])
    noise = np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / "pictures" / label).mkdir(parents=True)
        for k in range(12):
            pixels = noise.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / label / f"{k}.png")
    made = {name: str(folder / name) for name in ("folder", "empty", "rows", "bad", "pictures", "nowhere")}
    made["results"] = str(Path(__file__).parents[2] / "results" / "flips")
    return made | {"net": str(folder / "weights" / "first.safetensors"), "image": str(folder / "pictures/a/0.png")}


def try_tools(folder: Path, full: bool) -> Iterator[Case]:
    """Run broken commands of every tool."""
    places = make_places(folder)
    for text in WRONG if full else [text for text in WRONG if any(part in text for part in SHORT)]:
        verdict = judge(shlex.split(text.format(**places)), folder / "logs" / "log")
        late = verdict == "told" and "{bad}" not in text  # a damaged file is seen as it is read
        yield Case(text.split()[0], text, "refused too late" if late else verdict)
