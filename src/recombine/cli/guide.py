"""The steps of `recombine improve`, each with a line in the terminal."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from recombine.attachments import load
from recombine.core.results import write_rows
from recombine.improve.bundle import BASELINE, CHOSEN, ORIGINAL, Result, write_bundle, write_report
from recombine.improve.evaluation import Evaluation, Teacher
from recombine.improve.folder import split_folder
from recombine.improve.names import short_name, zoo_networks
from recombine.improve.rows import result_rows
from recombine.improve.search import best_of, choose_over, successive_halving
from recombine.improve.trials import Outcome, Trial, choose_patch, list_trials, open_result, run_trial
from recombine.run.provenance import commit, device_name, versions

__all__ = ["improve"]


def improve(options: argparse.Namespace, budget: float) -> None:
    """Split, fit, rank, try, choose, test once, and write the result; `budget` in seconds."""
    console, out = Console(highlight=False, soft_wrap=True), options.out
    work = out / "work"
    split = split_folder(options.images, work / "data")
    counts = ", ".join(f"{count} {name}" for name, count in split.counts.items())
    console.print(f"{escape(str(options.images))}: {len(split.class_names)} classes, images: {counts}")
    started, evaluation = time.monotonic(), Evaluation(split, work)
    original = measure_original(options, evaluation)
    show(console, original, budget)
    teachers = rank(options, evaluation, original, console)

    def run(trial: Trial, epochs: int, left: float) -> Outcome:
        return run_trial(trial, epochs, work, evaluation.measure, left)

    assert original.file is not None
    start = load(original.file)
    pixels = [f"b.{name}={getattr(start.preprocess, name)}" for name in ("size", "crop_pct", "interpolation")]
    augment, known = evaluation.choose_augment(start)
    told = "trained on random parts" if augment != "none" else "trained on whole images"
    console.print(f"  of the training images it knows, the original knows {known:.0f} % in random parts: {told}")
    batch_size = min(options.batch_size, split.counts["train"])
    trials = list_trials(teachers, batch_size, choose_patch(start), pixels, augment)
    left = budget - (time.monotonic() - started)
    tried = successive_halving(trials, left, run, lambda outcome, left: show(console, outcome, left))
    result = choose(original, tried, evaluation)
    write(options, evaluation, result)
    evaluation.close()
    console.print(f"chosen: {escape(result.chosen.name)}; {out / 'report.md'} says how it came about")


def measure_original(options: argparse.Namespace, evaluation: Evaluation) -> Outcome:
    """The network as it came, with a classifier for the images."""
    started = time.monotonic()
    model = evaluation.prepare(options.network, options.weights_root, "start")
    file = evaluation.work / "weights" / "start.safetensors"
    outcome = Outcome("original", "original", "", None, 0.0, file, evaluation.measure(model))
    outcome.seconds = time.monotonic() - started
    return outcome


def rank(options: argparse.Namespace, evaluation: Evaluation, original: Outcome, console: Console) -> list[str]:
    """Names of the zoo's networks, the one first that knows most of what the original does not."""
    teachers: list[Teacher] = []
    assert original.correct is not None
    networks = zoo_networks(options.zoo, options.network)
    for found in evaluation.rank_teachers(networks, options.weights_root, original.correct):
        if isinstance(found, str):
            console.print(f"  {escape(found)}")
            continue
        teachers.append(found)
        right = f"{found.accuracy:.1f} % right, {found.complementary:.1f} % where the original is wrong"
        console.print(f"  teacher {escape(found.name)}: {right}")
    return [teacher.name for teacher in sorted(teachers, key=lambda teacher: -teacher.complementary)]


def show(console: Console, outcome: Outcome, left: float) -> None:
    """A line about what was tried."""
    epochs = f", {outcome.epochs} epochs" if outcome.epochs else ""
    result = f"{outcome.accuracy:.1f} % right" if outcome.correct is not None else f"no result: {outcome.problem}"
    console.print(f"  {escape(outcome.name + epochs)}: {escape(result)}  ({outcome.seconds:.0f} s, {left:.0f} s left)")


def choose(original: Outcome, tried: list[Outcome], evaluation: Evaluation) -> Result:
    """The best on the validation images, if it is that for sure; the test images are read here, once."""
    chosen = choose_over(original, tried)
    baseline = best_of(tried, ["finetune"])
    compared = {ORIGINAL: original, BASELINE: baseline, CHOSEN: chosen}
    tested: dict[str, np.ndarray] = {}
    for name, outcome in compared.items():
        if outcome is not None and outcome.file is not None:
            network, task = open_result(outcome.file, evaluation.work)
            tested[name] = evaluation.measure(network, task, final=True)
    return Result([original, *tried], chosen, baseline, tested)


def write(options: argparse.Namespace, evaluation: Evaluation, result: Result) -> None:
    """The bundle and its report."""
    out = options.out
    forms = write_bundle(out, result.chosen, evaluation)
    about = {
        "network": options.network,
        "images": str(options.images),
        "budget": options.budget,
        "split": ", ".join(f"{count} {name}" for name, count in evaluation.split.counts.items()),
        "command": f"recombine improve {shlex.join(sys.argv[1:])}",
        "work": str(out / "work"),
    }
    write_report(out / "report.md", about, result, forms)
    kept: dict[str, Any] = {name: about[name] for name in ("command", "budget", "split")}
    kept = {**kept, "device": device_name(evaluation.device), **commit(), "versions": versions()}
    write_rows(out, result_rows(result, short_name(options.network), options.images.resolve().name, kept))
