"""GOMEA and LK-GOMEA: linked genes are copied together."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import NamedTuple

import numpy as np
from scipy.cluster.vq import kmeans
from scipy.spatial.distance import cdist

from recombine.stitch.search.acceptance import ObjectiveScale, accepts, assign, farthest_first, spread_weights
from recombine.stitch.search.base import Search, advance
from recombine.stitch.search.linkage import linkage_tree, mutual_information
from recombine.stitch.search.population import mutate
from recombine.stitch.search.space import Individuals

__all__ = ["Gomea", "LkGomea", "single_objectives"]

CLUSTERS = 5

Procedure = Generator[np.ndarray, Individuals, None]
"""Yields one genotype to evaluate and is sent the evaluated individual."""


class LinkageModel(NamedTuple):
    """Subsets and donors of the optimal mixing of an individual."""

    subsets: np.ndarray
    """bool [S, L]: genes that are copied together."""
    donors: np.ndarray
    """int8 [k, L]: genotypes they are copied from."""


class Gomea(Search):
    """Gene-pool optimal mixing by a linkage tree of the population, with forced improvement.

    Deviation: the authors' individuals are improved asynchronously. Here all of a generation mix in lockstep: each
    requests one evaluation at a time, and those of all make a batch; one with fewer requests is done earlier. Linkage,
    donors, clusters, weights and the scale of objectives are of the population at the beginning of the generation.
    Changes of inactive genes alone are requested too: the evaluator finds them in its memo.
    """

    def batches(self) -> Generator[np.ndarray, Individuals, None]:
        """The first population, then the requests of the individuals of a generation, step by step.

        Where genes inside of blocks come in late, that ends a generation, and each one then begins with a mutation of
        every individual that is not worse by it: copying genes makes no new ones.
        Where none do, it ends when a generation requests nothing, as all of the population is one genotype.
        """
        population = self.select((yield self.start()))
        vectors = spread_weights(self.size, self.rng)
        stagnation = np.zeros(self.size, int)
        while True:
            generation = Generation(self, population, vectors, stagnation, self.models(population.genotypes.copy()))
            any_request, varying = False, self.genes
            procedures = [generation.improve(i) for i in range(self.size)]
            waiting = [(p, trial) for p in procedures if (trial := advance(p, None)) is not None]
            while waiting and self.genes is varying:
                any_request = True
                found = yield np.stack([trial for _, trial in waiting])
                advanced = [(p, advance(p, found.take(j))) for j, (p, _) in enumerate(waiting)]
                waiting = [(p, trial) for p, trial in advanced if trial is not None]
            for procedure, _ in waiting:
                procedure.close()
            if not any_request:
                self.genes = None
            vectors = self.rng.permutation(vectors)
            if self.space.coarse is not None and self.genes is None:
                yield from self.mutate(population, vectors)
            elif not any_request:
                return

    def mutate(self, population: Individuals, vectors: np.ndarray) -> Procedure:
        """Give each individual its mutant if that is not worse by its weights."""
        scale = ObjectiveScale.of(population.objectives)
        weights = assign(vectors, scale(population.objectives))
        mutants = yield mutate(population.genotypes, self.space.alphabet, self.rng)
        better = np.flatnonzero(accepts(mutants, population, weights, scale, self.threshold))
        population.put(better, mutants.take(better))

    def models(self, genotypes: np.ndarray) -> list[LinkageModel]:
        """One model for each individual of a population int8 [P, L]; here all have the same."""
        subsets = linkage_tree(mutual_information(genotypes), self.rng)
        return [LinkageModel(subsets, genotypes)] * len(genotypes)


class LkGomea(Gomea):
    """GOMEA with linkage kernels: linkage and donors from the neighbourhood of each individual."""

    def models(self, genotypes: np.ndarray) -> list[LinkageModel]:
        """From the k = ceil(P / u) nearest by Hamming distance, itself among them, with u ~ U(1, P / 32) for each."""
        count = len(genotypes)
        models = []
        for genotype in genotypes:
            size = math.ceil(count / self.rng.uniform(1, max(1, count / 32)))
            order = self.rng.permutation(count)  # breaks ties in distance at random
            nearest = order[np.argsort((genotypes[order] != genotype).sum(1), kind="stable")[:size]]
            subsets = linkage_tree(mutual_information(genotypes[nearest]), self.rng)
            models.append(LinkageModel(subsets, genotypes[nearest]))
        return models


class Generation:
    """One generation: the individuals of a population are improved once, in place."""

    def __init__(
        self,
        search: Search,
        population: Individuals,
        vectors: np.ndarray,
        stagnation: np.ndarray,
        models: list[LinkageModel],
    ) -> None:
        """`stagnation` int [P] counts procedures without improvement, and is updated."""
        self.search, self.rng, self.archive = search, search.rng, search.archive
        self.population, self.stagnation, self.models = population, stagnation, models
        self.scale = ObjectiveScale.of(population.objectives)
        scaled = self.scale(population.objectives)
        self.weights = assign(vectors, scaled)
        self.single = single_objectives(scaled, self.rng)

    def improve(self, i: int) -> Procedure:
        """Optimal mixing of one individual, then forced improvement if nothing changed or it stagnates.

        It stagnates after more than 1 + floor(log2 P) procedures in a row without improvement: a strictly better
        solution, or one that the archive accepted (the sources do not define it). The count is then reset.
        """
        subsets, donors = self.models[i]
        start = current = self.population.take(i)
        improved = False
        try:
            for subset in self.rng.permutation(len(subsets)):
                genes = subsets[subset]
                different = np.flatnonzero((donors[:, genes] != current.genotypes[genes]).any(1))
                if not len(different):
                    continue
                trial = yield np.where(genes, donors[self.rng.choice(different)], current.genotypes)
                if trial.archived or self.accepts(i, trial, current):
                    improved = improved or bool(trial.archived) or not self.accepts(i, current, trial)
                    current = trial
            self.stagnation[i] = 0 if improved else self.stagnation[i] + 1
            unchanged = np.array_equal(current.genotypes, start.genotypes)
            if len(self.archive) and (unchanged or self.stagnation[i] > 1 + math.floor(math.log2(len(self.models)))):
                current = yield from self.force(i, current)
                self.stagnation[i] = 0
        finally:  # also where the generation is ended early
            self.population.put(i, current)

    def force(self, i: int, current: Individuals) -> Generator[np.ndarray, Individuals, Individuals]:
        """The first accepted change towards a member of the archive; failing that, any member of the archive."""
        subsets, donor = self.models[i].subsets, self.sample_elite()
        for subset in self.rng.permutation(len(subsets)):
            mixed = np.where(subsets[subset], donor.genotypes, current.genotypes)
            if np.array_equal(mixed, current.genotypes):
                continue
            trial = yield mixed
            if trial.archived or self.accepts(i, trial, current):
                return trial
        return self.sample_elite() if len(self.archive) else current

    def sample_elite(self) -> Individuals:
        """A random member of the archive."""
        return self.archive.members.take(int(self.rng.integers(len(self.archive))))

    def accepts(self, i: int, new: Individuals, old: Individuals) -> bool:
        """Whether individual i may go from `old` to `new`; in an extreme cluster one objective decides alone."""
        if self.single[i] >= 0:
            return bool(new.objectives[self.single[i]] <= old.objectives[self.single[i]])
        return bool(accepts(new, old, self.weights[i], self.scale, self.search.threshold))


def single_objectives(scaled: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The single objective by which each individual is accepted, -1 for both: int [P] for objectives [P, 2] in 0..1.

    Clusters are found by k-means from farthest-first leaders; each has its 2 P / k nearest as members; individuals in
    several choose one at random, those in none go to the nearest. The cluster whose mean is best in an objective is its
    extreme cluster, whose members are accepted by that objective; in one that is best in both, by a random one.
    """
    count = min(CLUSTERS, len(scaled))
    leaders = scaled[farthest_first(scaled, count, int(scaled[:, 0].argmin()))]
    centres, _ = kmeans(scaled, leaders, thresh=1e-10)
    distance = cdist(centres, scaled)
    members = np.zeros(distance.shape, bool)
    np.put_along_axis(members, np.argsort(distance, axis=1, kind="stable")[:, : 2 * len(scaled) // count], True, axis=1)
    members[distance.argmin(0), np.arange(len(scaled))] |= ~members.any(0)
    extreme = np.array([scaled[each].mean(0) for each in members]).argmin(0)
    chosen = [rng.choice(np.flatnonzero(each)) for each in members.T]
    decides = [np.flatnonzero(extreme == cluster) for cluster in chosen]
    return np.array([rng.choice(each) if len(each) else -1 for each in decides])
