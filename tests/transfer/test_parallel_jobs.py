"""Jobs of a sweep at the same time: what they share is made once, and each is right."""

import json
import time
from collections import Counter

import pytest
from digits import compose_config, run_rows

from recombine.data import write
from recombine.engine import class_predictions, evaluate
from recombine.transfer import recipe, training
from tests.forked import processes

JOBS = {"a": ["method=kl_dp"], "b": ["method=kl_dp_u", "teacher.name=letters"]}


def counted(counts, module, name, key, seconds=0.0):
    """Let a function be counted under its key, and take so much longer, that others ask while it is at work."""
    original = getattr(module, name)

    def function(*arguments, **options):
        counts[key(arguments, options)] += 1
        time.sleep(seconds)
        return original(*arguments, **options)

    setattr(module, name, function)


def job(name, folder, place, together):
    """A run; leaves its metrics, what it computed and from when to when, as JSON."""
    counts = Counter()
    for module in (evaluate, class_predictions):
        counted(counts, module, "run_over", lambda *_: "passes over images", seconds=1.0)
    counted(counts, training, "train", lambda _, options: options.get("name", "transfer"))
    counted(counts, write, "_convert", lambda given, _: f"convert {given[0].name}")
    words = ["loader=device", "controls=[xe,self_dist]", "engine.epochs=3", *JOBS[name]]
    roots = [f"output_root={place / name}", f"cache_root={place / 'cache'}"]
    cfg = compose_config(folder, *words, *roots)
    if together is not None:
        together.wait()
    start = time.monotonic()
    (row,) = run_rows(recipe, cfg)
    found = {"metrics": row.metrics, "counts": counts, "time": [start, time.monotonic()]}
    (place / f"{name}.json").write_text(json.dumps(found))


def run_jobs(folder, place, *, parallel):
    place.mkdir()
    together = processes.Barrier(len(JOBS)) if parallel else None
    running = [processes.Process(target=job, args=(name, folder, place, together)) for name in JOBS]
    for process in running:
        process.start()
        if not parallel:
            process.join(300)
    for process in running:
        process.join(300)
    assert [process.exitcode for process in running] == [0, 0]
    return {name: json.loads((place / f"{name}.json").read_text()) for name in JOBS}


@pytest.mark.slow
def test_two_jobs_at_once_share_their_work_and_are_right(folder, tmp_path):
    one, both = (run_jobs(folder, tmp_path / name, parallel=name == "both") for name in ("one", "both"))
    assert max(each["time"][0] for each in both.values()) < min(each["time"][1] for each in both.values())
    for name in JOBS:
        assert both[name]["metrics"] == one[name]["metrics"]
    work = [sum((Counter(each["counts"]) for each in runs.values()), Counter()) for runs in (one, both)]
    assert work[0] == work[1], "nothing that the jobs share is computed twice"
    assert work[1]["control/xe"] == work[1]["control/self_dist"] == work[1]["convert train"] == 1
    assert work[1]["transfer"] == 2
