"""Search for the Pareto front of stitched networks in accuracy and multiply-adds.

Every algorithm is built as `algorithm(space, budget, seed=...)` and does all its work in `run(evaluate)`, which returns
the archive. The same seed and the same evaluations give the same requests, so an interrupted run is continued by
repeating its first requests from a memo; the state of an algorithm is never saved.
"""
