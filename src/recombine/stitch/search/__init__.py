"""Search for the stitched networks that no other beats in accuracy and multiply-adds at once (section 11).

Every algorithm is built as `algorithm(space, budget, seed=...)` and does all its work in `run(evaluate)`, which returns
the archive. The same seed and the same answers give the same requests, so an interrupted run is continued by answering
its first requests from a memo; nothing of an algorithm is ever saved.
"""
