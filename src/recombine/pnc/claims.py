"""The paper's claims, derived from the rows of cloning."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from recombine.core.types import Row
from recombine.pnc import method_settings
from recombine.pnc.gains import gain, unpack
from recombine.pnc.method_settings import CloningSettings, PositionSearchSettings
from recombine.pnc.settings import LimeSettings
from recombine.report.registry import register_derived

__all__ = ["compare_clones", "derive_claims", "gain_over", "is_default", "name_pairs"]

TUNING = ("finetune", "lwf", "ewc", "lwf_source")
COMPARED = {"tuning": TUNING, "continual": ("lwf", "ewc"), "random": ("pnc_random",), "whole": ("pnc_whole",)}
COMPARED |= {"reinitialised": ("pnc_reinitialised",)}
"""What a clone is compared with, the best of each."""
CHOSEN_BY = "select_average"
"""Average accuracy on the images kept for selection, by which the best of several is chosen."""
HITS = ("hits_original", "hits_cloned")
SETTINGS = [key for key in method_settings.COMPARED if key not in ("mask", "source_weights")]
"""Settings of a clone that rows hold, but for those that what it is compared with changes."""
TASK = ("dataset", "target", "source", "clone", "fraction", "use_target_data")
"""Cell keys in which a clone and what it is compared with must agree."""


def is_default(row: Row) -> bool:
    """Whether a row has the method's default settings; keys that old rows lack are ignored."""
    cell = row.cell
    head = "rows" if cell.get("use_target_data", True) else "concat"
    default = {key: CloningSettings.model_fields[key].default for key in SETTINGS}
    default |= {"head": head, "positions": "all", "search": PositionSearchSettings().metric}
    default |= {"segment": LimeSettings().segment}
    return all(cell.get(key, "none") in (value, "none") for key, value in default.items())


def compare_clones(rows: Sequence[Row]) -> list[Row]:
    """Clones beside what they are compared with, one row for each clone with default settings.

    gain_over_tuning: average accuracy above the best of TUNING in the same run's seed and data, in points; the best on
    the images kept for selection, and where rows do not hold that the gain is not known;
    gain_over_continual: the same of CONTINUAL; gain_over_random, _whole, _reinitialised: above the clone of filters by
    chance, of the whole source, of a source with random weights; each with its 95 % interval over the test images, if
    the rows hold which ones were answered right. locality_gain: 100 (1 - lost / lost by the best of TUNING), if that
    one lost anything; lost_below_half: half of what that one lost, minus what the clone lost, in points;
    gain_of_all_images: what the same clone gains from all training images.
    """
    found: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        if row.status == "ok" and is_default(row) and "accuracy_average" in row.metrics:
            key = (*(str(row.cell.get(name)) for name in TASK), row.seed)
            found.setdefault(key, {}).setdefault(str(row.cell["method"]), row)
    return [_compare(key, methods, found) for key, methods in found.items() if "pnc" in methods]


def derive_claims(rows: Sequence[Row]) -> list[Row]:
    """The same, where a pair of networks of each seed is one pair."""
    return name_pairs(compare_clones(rows))


def _compare(key: tuple, methods: dict[str, Row], found: dict[tuple, dict[str, Row]]) -> Row:
    clone = methods["pnc"]
    names = ("accuracy_average", *(f"gain_over_probe{end}" for end in ("", "_low", "_high")))
    metrics = {name: clone.metrics[name] for name in names if name in clone.metrics}
    for name, others in COMPARED.items():
        there = [methods[other] for other in others if other in methods]
        if there:
            best = _best(there)
            if best is None:
                continue
            metrics |= gain_over(f"gain_over_{name}", clone, best)
            if name == "tuning" and best.metrics["locality_drop"] > 0:
                lost = clone.metrics["locality_drop"] / best.metrics["locality_drop"]
                metrics["locality_gain"] = 100 * (1 - lost)
            if name == "tuning":
                metrics["lost_below_half"] = best.metrics["locality_drop"] / 2 - clone.metrics["locality_drop"]
    place = TASK.index("fraction")
    whole = found.get((*key[:place], "1.0", *key[place + 1 :]), {}).get("pnc")
    if whole is not None and whole is not clone:
        metrics["gain_of_all_images"] = whole.metrics["accuracy_average"] - clone.metrics["accuracy_average"]
    classes = clone.cell.get("classes", len(str(clone.cell["clone"]).split()))
    return replace(clone, cell={**clone.cell, "classes": classes}, metrics=metrics, series={})


def _best(rows: Sequence[Row]) -> Row | None:
    """The best by average accuracy on the images kept for selection, never on test images; None where one lacks it."""
    if len(rows) > 1 and not all(CHOSEN_BY in row.metrics for row in rows):
        return None
    return max(rows, key=lambda row: row.metrics.get(CHOSEN_BY, 0.0))


def name_pairs(rows: Sequence[Row]) -> list[Row]:
    """Rows that call target and source without the seed they were trained from: a pair of each seed is one pair."""
    names = ("target", "source")
    return [
        replace(row, cell={k: re.sub(r"-s\d+(?= |$)", "", str(v)) if k in names else v for k, v in row.cell.items()})
        for row in rows
    ]


def gain_over(name: str, clone: Row, other: Row) -> dict[str, float]:
    """What a clone gains over another row, with the interval over images if both say which ones they got right."""
    hits = [[unpack(text) for key in HITS for text in row.series.get(key, ())] for row in (clone, other)]
    if len(hits[0]) == len(hits[1]) == len(HITS) and all(len(a) == len(b) for a, b in zip(*hits, strict=True)):
        return gain(name, *hits)
    return {name: clone.metrics["accuracy_average"] - other.metrics["accuracy_average"]}


register_derived("pnc_claims", derive_claims)
register_derived("pnc_pairs", name_pairs)
