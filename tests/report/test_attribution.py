"""What of a gain is the teacher's, over independently trained networks, and the verdicts on claims."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta, t

from recombine.core.types import Row
from recombine.report.pivot import build
from recombine.report.spec import load_specs, pick
from recombine.transfer.attribution import derive_attribution, derive_claims

TABLES = Path(__file__).resolve().parents[2] / "config" / "table"


def rows_of(deltas, method="kl_dp", gap=2.0, gains=None, seeds=(0,), teacher="cnn"):
    """A row for each pair of networks lenet5-mnist-s<k> and <teacher>-mnist-s1<k>, and each seed."""
    where = {"dataset": "mnist", "fraction": 0.1, "split": "test", "method": method}
    return [
        Row(
            {"student": f"lenet5-mnist-s{k}", "teacher": f"{teacher}-mnist-s1{k}", **where},
            {
                "transfer_delta": delta,
                "knowledge_gain": 3 + delta,
                "knowledge_loss": 3.0,
                "gain_over_xe": gains[k] if gains else delta / 2,
                "differs_from_xe": 2.0,
                "accuracy_gap": gap,
                "images": 10_000,
                "positive_flips_before": 3.0 + k,
                "steps": 100,
            },
            entry="transfer",
            seed=seed,
            run=f"{method}-{teacher}-{k}-{seed}",
        )
        for k, delta in enumerate(deltas)
        for seed in seeds
    ]


def test_networks_of_one_kind_are_averaged_with_an_interval_by_hand():
    deltas = [0.4, 0.6, 0.5, 0.9]
    (row,) = derive_attribution(rows_of(deltas, seeds=(0, 1)))
    assert row.cell["student"] == "lenet5-mnist" and row.cell["teacher"] == "cnn-mnist (stronger)"
    assert row.metrics["networks"] == 4 and row.metrics["transfer_delta"] == pytest.approx(0.6)
    d = np.array(deltas) / 100
    over_images = np.mean((6 / 100 + d) - d**2) / 10_000  # gain + loss = 6 % + delta
    half = np.sqrt(t.ppf(0.975, 9999) ** 2 * over_images + (t.ppf(0.975, 3) * d.std(ddof=1)) ** 2 / 4)
    assert row.metrics["transfer_delta_high"] == pytest.approx(60 / 100 + 100 * half, rel=1e-6)


def test_a_star_needs_several_networks_and_an_interval_without_zero():
    spec = pick(load_specs(TABLES), "transfer/attribution")
    sure, unsure, one = [0.8, 0.9, 0.85, 0.8], [0.9, -0.5, 1.3, -0.2], [2.0]
    for deltas, starred in ((sure, True), (unsure, False), (one, False)):
        table = build(spec, rows_of(deltas))
        (text,) = [line[table.headers.index("delta (points)")] for line in table.rows]
        assert ("★" in text) == starred
        assert ("[" in text) == (len(deltas) > 1), "one network tells nothing of others"


def verdicts(rows):
    return {row.cell["claim"][:4].strip(): row.cell["verdict"] for row in derive_claims(rows)}


def test_verdicts_follow_the_intervals():
    harm = rows_of([-2.0, -2.2, -1.9, -2.1], "kl", gap=-3.0, teacher="resnet8")
    assert verdicts(harm)["2 KL"] == "holds"
    help_ = rows_of([2.0, 2.2, 1.9, 2.1], "kl", gap=-3.0, teacher="resnet8")
    assert verdicts(help_)["2 KL"] == "contradicted"
    assert verdicts(rows_of([0.5, -0.4, 0.1, 0.2], "kl", gap=-3.0, teacher="resnet8"))["2 KL"] == "not shown"
    assert verdicts(harm[:2])["2 KL"] == "not tested", "two networks are too few"
    assert verdicts(harm)["6 La"] == "not tested"


def test_of_equally_many_pairs_the_teachers_furthest_from_their_students_speak():
    far = rows_of([-2.0, -2.2, -1.9, -2.1], "kl", gap=-3.0, teacher="resnet8")
    near = rows_of([2.0, 2.2, 1.9, 2.1], "kl", gap=-0.6, teacher="cnn")
    assert verdicts(far + near)["2 KL"] == verdicts(near + far)["2 KL"] == "holds"
    assert verdicts(far[:3] + near)["2 KL"] == "contradicted", "more pairs come first"


def test_a_gain_that_fine_tuning_has_too_is_not_the_teachers():
    rows = rows_of([0.8, 0.9, 0.85, 0.8], gains=[-0.6, -0.65, -0.6, -0.62])
    found = {row.cell["claim"]: row.cell["verdict"] for row in derive_claims(rows)}
    (gains,) = [verdict for claim, verdict in found.items() if claim.startswith("4 DP gains from a stronger")]
    (owed,) = [verdict for claim, verdict in found.items() if "a stronger one's" in claim]
    assert (gains, owed) == ("holds", "contradicted")


def test_the_least_knowledge_of_all_pairs_has_an_interval_over_images():
    rows = rows_of([0.5, 0.6, 0.7, 0.8])
    (row,) = [row for row in derive_claims(rows) if row.cell["claim"].startswith("1 Every pair")]
    low = beta.ppf(0.05 / 4 / 2, 300, 10_000 - 300 + 1)  # 3 % of 10,000 images are least; four pairs to choose from
    assert row.metrics["effect_low"] == pytest.approx(100 * low - 2) and row.cell["verdict"] == "holds"
    few = [replace(row, metrics={**row.metrics, "images": 1_000}) for row in rows]
    assert verdicts(few)["1 Ev"] == "not shown"
