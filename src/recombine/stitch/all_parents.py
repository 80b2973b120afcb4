"""Crosses one after the other: the last offspring beside every parent that took part, and the ensemble of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from recombine.core.paired import compare_paired
from recombine.core.types import Loader
from recombine.models import Model
from recombine.stitch.comparison import (
    PURPOSES,
    Columns,
    MeasuredNetworks,
    is_offspring,
    place_networks,
    score_of,
    surely_better,
)
from recombine.stitch.measuring import predict_network
from recombine.stitch.pareto import dominates

__all__ = ["AllParents"]


class AllParents:
    """The parents of several crosses, as they were measured, and the ensemble of them."""

    def __init__(self, loaders: Mapping[str, Loader], precision: str) -> None:
        """`loaders`: the images of the search and of the test."""
        self.loaders, self.precision = loaders, precision
        self.models: list[Model] = []
        self.measured: list[tuple[Columns, Mapping[str, np.ndarray]]] = []

    def add(self, models: Sequence[Model], references: MeasuredNetworks) -> None:
        """Add the second parent of a cross, of the first cross both; `references`: as the cross measured them."""
        for k in (0, 1) if not self.models else (1,):
            self.models.append(models[k])
            columns = {key: [values[k]] for key, values in references.columns.items()}
            self.measured.append((columns, {purpose: references.counts[purpose][k] for purpose in PURPOSES}))

    def compare(self, front: MeasuredNetworks) -> dict[str, float]:
        """A front beside all of them, and the best offspring on the search images beside the best parent there.

        Costs are held against the multiply-adds of all parents together, which their ensemble takes. `*_significant`:
        as in `compare_to_references`.
        """
        columns, counts = self._with_ensemble(front)
        offspring, ensemble, metrics = is_offspring(front.columns), len(self.models), {}
        for purpose in PURPOSES:
            points, parents = (place_networks(side, purpose, columns) for side in (front.columns, columns))
            dominated = dominates(points, parents) & offspring[:, None]
            surely = np.stack(
                [
                    surely_better(
                        front.task.p_values(front.counts[purpose], counts[purpose][k]),
                        offspring & (points[:, 1] < parents[k, 1]),
                    )
                    for k in range(ensemble + 1)
                ],
                1,
            )
            metrics[f"{purpose}_dominate_all_parents"] = float(dominated[:, :ensemble].all(1).sum())
            metrics[f"{purpose}_dominate_any_parent_significant"] = float(surely[:, :ensemble].any(1).sum())
            metrics[f"{purpose}_dominate_all_together"] = float(dominated[:, ensemble].sum())
            metrics[f"{purpose}_dominate_all_together_significant"] = float(surely[:, ensemble].sum())
        return metrics | self._best(front, columns, counts)

    def _best(
        self, front: MeasuredNetworks, columns: Columns, counts: Mapping[str, list[np.ndarray]]
    ) -> dict[str, float]:
        """Scores of the best parent by the search images and of the ensemble, and what the best offspring gains."""
        score, ensemble = score_of(columns), len(self.models)
        parent = max(range(ensemble), key=lambda k: columns[f"search_{score}"][k])
        metrics = {
            f"test_{score}_best_parent": float(columns[f"test_{score}"][parent]),
            f"test_{score}_all_together": float(columns[f"test_{score}"][ensemble]),
        }
        offspring = np.flatnonzero(is_offspring(front.columns)).tolist()
        if not offspring:
            return metrics
        best = max(offspring, key=lambda k: front.columns[f"search_{score}"][k])
        metrics["chosen_cost_of_all"] = 100 * front.columns["cost"][best] / columns["cost"][ensemble]
        for name, k in (("best_parent", parent), ("all_together", ensemble)):
            metrics |= self._gain(f"chosen_gain_over_{name}", front, best, columns, counts["test"][k], k)
        return metrics

    def _gain(
        self, name: str, front: MeasuredNetworks, best: int, columns: Columns, other: np.ndarray, k: int
    ) -> dict[str, float]:
        """Points that an offspring scores beyond another network on the test images, of accuracy with an interval."""
        if front.task.pixels:
            score = f"test_{score_of(columns)}"
            return {name: float(front.columns[score][best] - columns[score][k])}
        return compare_paired(front.counts["test"][best][:, 0] > 0, other[:, 0] > 0).metrics(name)

    def _with_ensemble(self, front: MeasuredNetworks) -> tuple[Columns, dict[str, list[np.ndarray]]]:
        """Columns and answers of all parents and then of their ensemble."""
        score = score_of(front.columns)
        columns: Columns = {
            key: [value for measured, _ in self.measured for value in measured[key]]
            for key in ("cost", f"search_{score}", f"test_{score}")
        }
        counts = {purpose: [answers[purpose] for _, answers in self.measured] for purpose in PURPOSES}
        columns["cost"].append(sum(columns["cost"]))
        for purpose in PURPOSES:
            found = predict_network(
                _MeanOutput(self.models), self.loaders[purpose], front.task, precision=self.precision
            ).counts
            columns[f"{purpose}_{score}"].append(100 * float(front.task.value(found.double().sum(0), len(found))))
            counts[purpose].append(found.numpy())
        return columns, counts


class _MeanOutput(nn.Module):
    """The mean of the logits of several networks."""

    def __init__(self, models: Sequence[Model]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([model(images).float() for model in self.models]).mean(0)
