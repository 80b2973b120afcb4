"""What the guided command leaves: a network for use anywhere, its class names, and a page about how it was found."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

from recombine.core.errors import RecombineError
from recombine.core.files import write_atomically
from recombine.core.paired import compare_paired
from recombine.improve.evaluation import Evaluation, preprocess_of
from recombine.improve.trials import Outcome, open_result
from recombine.models.export import Equality, OneTask, export_network

__all__ = ["BASELINE", "CHOSEN", "ORIGINAL", "Result", "write_bundle", "write_report"]

LOADER = Path(__file__).with_name("load_template.py")
ORIGINAL, BASELINE, CHOSEN = "the original", "fine-tuning alone", "the chosen network"
Forms = Mapping[str, Equality | str]
"""What each export compared, or why it is not there, by file name."""


class Result(NamedTuple):
    """What was tried, what was chosen on the validation images, and how that does on the test images."""

    outcomes: list[Outcome]
    chosen: Outcome
    baseline: Outcome | None
    """Fine-tuning alone."""
    tested: dict[str, np.ndarray]
    """Which test images the original, fine-tuning alone and the chosen network get right, bool [n] each."""


def write_bundle(folder: Path, chosen: Outcome, evaluation: Evaluation) -> Forms:
    """Write the chosen network in every form, its class names, and the code that loads it with torch alone."""
    assert chosen.file is not None
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", "base.safetensors", "patch.safetensors", "model.pt2", "model.onnx"):
        (folder / name).unlink(missing_ok=True)
    files = {"model.safetensors": chosen.file}
    if chosen.method == "patch":
        files = {"patch.safetensors": chosen.file, "base.safetensors": evaluation.work / "weights/start.safetensors"}
    for name, file in files.items():
        shutil.copyfile(file, folder / name)
    names = evaluation.split.class_names
    write_atomically(folder / "labels.json", json.dumps(names, ensure_ascii=False, indent=1) + "\n")
    network, task = open_result(chosen.file, evaluation.work)
    preprocess = preprocess_of(network)
    settings = {key: getattr(preprocess, key) for key in ("size", "canvas", "interpolation")}
    code = LOADER.read_text(encoding="utf-8").replace("PREPROCESSING: dict = {}", f"PREPROCESSING = {settings}")
    write_atomically(folder / "load.py", code)
    forms: dict[str, Equality | str] = {}
    for name in ("model.pt2", "model.onnx"):
        one = network if task is None else OneTask(network, task)
        try:
            forms[name] = export_network(one, folder / name, preprocess.size, {"class_names": names, **settings})
        except RecombineError as error:
            forms[name] = str(error)
    return forms


def write_report(path: Path, about: Mapping[str, str], result: Result, forms: Forms) -> None:
    """One page in Markdown: the result first, then what was tried, how to use the result, and how to repeat it."""
    outcomes, chosen, baseline, tested = result
    lines = [f"# {about['network']} on {about['images']}", "", _verdict(result), ""]
    lines += _table(["", "test accuracy (%)", "95 % interval"], [_accuracy(*item) for item in tested.items()])
    lines += ["", f"Test images: {len(next(iter(tested.values())))}, read once, after everything was chosen.", ""]
    lines += [
        "## What was tried",
        "",
        "Chosen on the validation images; intervals are over images.",
        "",
    ]
    header = ["tried", "epochs", "validation accuracy (%)", "against fine-tuning alone (points)", "seconds", ""]
    lines += _table(header, [_tried(outcome, baseline, chosen) for outcome in outcomes])
    lines += ["", "## How to use it", "", f"- {_what(chosen)}"]
    lines += ["- `labels.json`: the class names in the order of the outputs", *_forms(forms)]
    lines += ["- `python load.py image.jpg ...`: needs `model.pt2`, torch, NumPy and Pillow only", ""]
    lines += ["## How to repeat it", "", "```bash", about["command"], f"cd {shlex.quote(about['work'])}"]
    lines += [outcome.command for outcome in outcomes if outcome.command] + ["```", ""]
    lines += [f"- {name}: {text}" for name, text in about.items() if name not in ("command", "work")]
    write_atomically(path, "\n".join(lines) + "\n")


def _verdict(result: Result) -> str:
    chosen, tested = result.chosen, result.tested
    if chosen.method == "original":
        shown = "" if chosen.correct is None else f"{len(chosen.correct)} "
        return f"**Nothing that was tried is better for sure on the {shown}validation images: the original is kept.**"
    others = [name for name in tested if name != CHOSEN and not (name == BASELINE and chosen is result.baseline)]
    against = {name: compare_paired(tested[CHOSEN], tested[name]) for name in others}
    parts = [
        f"{pair.difference:+.1f} points against {name} (95 % interval {pair.low:+.1f} to {pair.high:+.1f}, "
        f"p = {pair.p:.2g})"
        for name, pair in against.items()
    ]
    return f"**Chosen: {chosen.name}.** On the test images {'; '.join(parts)}."


def _accuracy(name: str, correct: np.ndarray) -> list[str]:
    interval = binomtest(int(correct.sum()), len(correct)).proportion_ci(method="wilson")
    return [name, f"{100 * correct.mean():.1f}", f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"]


def _tried(outcome: Outcome, baseline: Outcome | None, chosen: Outcome) -> list[str]:
    against = ""
    if outcome is not baseline and outcome.correct is not None and baseline and baseline.correct is not None:
        pair = compare_paired(outcome.correct, baseline.correct)
        against = f"{pair.difference:+.1f} ({pair.low:+.1f} to {pair.high:+.1f})"
    accuracy = f"{outcome.accuracy:.1f}" if outcome.correct is not None else ""
    remark = "chosen" if outcome is chosen else outcome.problem.replace("|", "/")
    return [outcome.name, str(outcome.epochs or ""), accuracy, against, f"{outcome.seconds:.0f}", remark]


def _what(chosen: Outcome) -> str:
    if chosen.method == "patch":
        return "`base.safetensors` and `patch.safetensors`: `recombine.attach(recombine.load(base), patch)`"
    return "`model.safetensors`: `recombine.load(path)`" + (
        "" if chosen.method == "stitch" else ", or plain timm or torchvision where the network is theirs"
    )


def _forms(forms: Mapping[str, Equality | str]) -> list[str]:
    return [
        f"- `{name}`: compared on {form.images} images, largest difference {form.difference:.1e} of the largest logit"
        if isinstance(form, Equality)
        else f"- no `{name}`: {form}"
        for name, form in forms.items()
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
