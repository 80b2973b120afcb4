"""Successive halving over trials: short trainings of all, longer ones of the better half, until the time is spent."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from recombine.core.paired import compare_paired
from recombine.improve.trials import Outcome, Trial

__all__ = ["EPOCHS", "best_of", "choose_over", "successive_halving"]

EPOCHS = (3, 9, 27)
"""Of the rounds."""
Runner = Callable[[Trial, int, float], Outcome]
"""(trial, epochs, seconds it may take) -> outcome."""
Report = Callable[[Outcome, float], None]
"""(outcome, seconds left)."""


def successive_halving(trials: Sequence[Trial], budget: float, run: Runner, report: Report) -> list[Outcome]:
    """Every outcome, in the order of their runs (Jamieson and Talwalkar, AISTATS 2016).

    A round trains three times as long as the one before, and the better half of its trials by validation accuracy goes
    on; fine-tuning alone always does, since all others are compared with it. `budget` in seconds: a trial that would by
    its last round not end in time is left out.
    """
    deadline = time.monotonic() + budget
    outcomes: list[Outcome] = []
    alive = list(trials)
    took: dict[str, float] = {}
    for number, epochs in enumerate(EPOCHS):
        scores: dict[str, float] = {}
        for trial in alive:
            left = deadline - time.monotonic()
            if left <= 0 or took.get(trial.name, 0) * 3 > left:
                continue
            outcome = run(trial, epochs, left)
            outcomes.append(outcome)
            report(outcome, deadline - time.monotonic())
            took[trial.name] = outcome.seconds
            if outcome.correct is not None:
                scores[trial.name] = outcome.accuracy
        ranked = sorted((t for t in alive if t.trains and t.name in scores), key=lambda t: -scores[t.name])
        alive = ranked[: (len(ranked) + 1) // 2]
        alive += [t for t in ranked if t.method == "finetune" and not any(a.method == "finetune" for a in alive)][:1]
        if not alive or number + 1 == len(EPOCHS):
            break
    return outcomes


def best_of(outcomes: Sequence[Outcome], methods: Sequence[str] = ()) -> Outcome | None:
    """The outcome with the highest validation accuracy, the earliest (shortest) of equals; of `methods` if given."""
    usable = [outcome for outcome in outcomes if outcome.correct is not None]
    usable = [outcome for outcome in usable if not methods or outcome.method in methods]
    return max(usable, key=lambda outcome: outcome.accuracy, default=None)


def choose_over(original: Outcome, outcomes: Sequence[Outcome]) -> Outcome:
    """The best outcome if it is better than the original for sure, else the original.

    For sure: the 95 % interval of the difference over validation images leaves out 0, and is wide enough to hold for
    all networks that were measured (Bonferroni): the best of several on a few images is often worse on others.
    """
    best = best_of(outcomes)
    if best is None or best.correct is None or original.correct is None:
        return original
    measured = sum(outcome.measured for outcome in outcomes if outcome.correct is not None)
    gained = compare_paired(best.correct, original.correct, confidence=1 - 0.05 / measured)
    return best if gained.low > 0 else original
