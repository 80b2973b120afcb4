"""Crosses one after the other: `parents=[a,b,c]`."""

from contextlib import closing

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from recombine.run.launch import check
from recombine.stitch import recipe
from recombine.stitch.all_parents import AllParents
from recombine.stitch.comparison import MeasuredNetworks
from recombine.stitch.images import open_images
from recombine.stitch.loading import load_parents
from recombine.stitch.tasks import Classification
from tests.stitch.digits import composed, launched, new_run, train_on_digits
from tests.stitch.test_training import Images

SETTINGS = ["search.population=8", "budget=30", "method.init_images=128", "num_saved=2", "search_fraction=0.3"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Three networks that tell digits apart, each differently."""
    folder = tmp_path_factory.mktemp("parents")
    nodes = {
        "first": {"name": "resnet8"},
        "second": {"name": "cnn", "widths": [8, 16, 16]},
        "third": {"name": "cnn", "widths": [8, 8, 16]},
    }
    train_on_digits(folder, nodes)
    return folder


@pytest.fixture(scope="module")
def crossed(weights, tmp_path_factory):
    """(folder, rows) of one run with three parents."""
    folder = tmp_path_factory.mktemp("crossed")
    return folder, launched(folder, weights, "parents=[first,second,third]", *SETTINGS)


def evaluations(folder):
    return (folder / "evaluations.jsonl").read_text().splitlines()[1:]


def test_a_run_of_three_parents_is_two_runs_of_two(crossed, weights, tmp_path):
    folder, rows = crossed
    (whole,) = (folder / "o" / "stitch").iterdir()
    assert whole.name.startswith("first-second-third-ga_familial-s0-")
    assert [(row.cell["a"], row.cell["b"]) for row in rows] == [("first", "second"), ("first+second", "third")]
    (one,) = launched(tmp_path / "one", weights, *SETTINGS)
    (alone,) = (tmp_path / "one" / "o" / "stitch").iterdir()
    assert evaluations(whole / "cross1") == evaluations(alone)
    file = alone / "offspring" / "0.safetensors"
    assert (whole / "cross1" / "offspring" / "0.safetensors").read_bytes() == file.read_bytes()
    (two,) = launched(tmp_path / "two", weights, f"a.name={file}", "b.name=third", *SETTINGS)
    (again,) = (tmp_path / "two" / "o" / "stitch").iterdir()
    assert evaluations(whole / "cross2") == evaluations(again)
    for row, same in zip(rows, (one, two), strict=True):
        assert row.series["front_on"] == same.series["front_on"]
        shared = {key: value for key, value in row.metrics.items() if key in same.metrics and "seconds" not in key}
        assert shared == {key: value for key, value in same.metrics.items() if "seconds" not in key}
    (curves,) = whole.glob("metrics.jsonl")
    assert '"search/cross1/accuracy"' in curves.read_text() and '"search/cross2/accuracy"' in curves.read_text()


def test_the_last_offspring_is_held_against_all_parents_and_their_ensemble(crossed, weights, tmp_path):
    _, (first, last) = crossed
    keys = [(first, "a"), (first, "b"), (last, "b")]
    own = [[row.metrics[f"{key}_{side}"] for key in ("search_accuracy", "test_accuracy", "cost")] for row, side in keys]
    cfg, run = composed(tmp_path, weights, "parents=[first,second,third]", *SETTINGS), new_run(tmp_path)
    networks, right = load_parents(cfg, run), []
    with closing(open_images(cfg, run)) as images, torch.no_grad():
        for batch in images.test_loader(networks[0], 64).epoch(0):
            logits = sum(network(batch.images) for network in networks)
            right += (logits.argmax(1) == batch.labels).tolist()
    together, metrics, series = 100 * sum(right) / len(right), last.metrics, last.series
    assert metrics["test_accuracy_best_parent"] == max(own)[1]
    assert metrics["test_accuracy_all_together"] == pytest.approx(together)
    points = list(zip(series["front_test_accuracy"], series["front_cost"], strict=True))
    on = [k for k, genes in enumerate(series["front_on"]) if genes]
    beats = {
        k: [points[k][0] >= score and points[k][1] <= cost and points[k] != (score, cost) for _, score, cost in own]
        for k in on
    }
    assert metrics["test_dominate_all_parents"] == sum(map(all, beats.values()))
    best = max(on, key=lambda k: series["front_search_accuracy"][k])
    gain, ends = points[best][0] - together, ("low", "high")
    assert metrics["chosen_gain_over_all_together"] == pytest.approx(gain)
    low, high = (metrics[f"chosen_gain_over_all_together_{end}"] for end in ends)
    assert low < gain < high
    assert metrics["chosen_cost_of_all"] == pytest.approx(100 * points[best][1] / sum(cost for *_, cost in own))


class Known(torch.nn.Module):
    """Right, and sure of it, for the images of these numbers; hardly sure where it is wrong."""

    def __init__(self, right):
        super().__init__()
        self.register_buffer("margin", torch.where(torch.isin(torch.arange(200), torch.tensor(right)), 10.0, -1.0))

    def forward(self, images):
        margin = self.margin[images[:, 0, 0, 0].long()]
        return torch.stack([margin, -margin], 1)


def test_all_parents_by_hand():
    """A hundred images of the search, numbers 0 to 99, and a hundred of the test, 100 to 199; all of class 0."""
    spans = {"search": range(100), "test": range(100, 200)}
    right = {  # by network: those of the search, and those of the test
        "a": (range(60), range(100, 190)),
        "b": (range(70), range(120, 200)),
        "c": (range(50), range(100, 170)),
        "child": (range(75), range(106, 198)),
        "better": (range(40), range(100, 200)),
    }
    columns = {f"{purpose}_accuracy": [len(right[name][k]) for name in right] for k, purpose in enumerate(spans)}
    columns |= {"cost": [4.0, 3.0, 2.0, 1.0, 1.5], "on": [[], [], [], [0], [0]], "output": [0] * 5}
    counts = {
        purpose: np.stack([np.isin(span, right[name][k]) for name in right])[..., None].astype(np.float32)
        for k, (purpose, span) in enumerate(spans.items())
    }

    def some(*places):
        taken = {key: [values[k] for k in places] for key, values in columns.items()}
        return MeasuredNetworks(taken, {key: values[[*places]] for key, values in counts.items()}, Classification())

    loaders = {key: Images(torch.tensor(span, dtype=torch.uint8)[:, None, None, None]) for key, span in spans.items()}
    parents = AllParents(loaders, "fp32")
    a, b, c = (Known([*right[name][0], *right[name][1]]) for name in "abc")
    parents.add((a, b), some(0, 1, 1))
    parents.add((None, c), some(3, 2, 2))  # the first is an offspring of a and b
    found = parents.compare(some(3, 4))
    assert found["test_accuracy_best_parent"] == 80, "b is the best on the search images, a on the test's"
    assert found["test_accuracy_all_together"] == 100, "one of three is sure of each test image"
    assert (found["search_dominate_all_parents"], found["test_dominate_all_parents"]) == (1, 2)
    assert (found["search_dominate_all_together"], found["test_dominate_all_together"]) == (1, 1)
    assert found["chosen_cost_of_all"] == pytest.approx(100 * 1 / 9)
    assert found["chosen_gain_over_best_parent"] == 12 and found["chosen_gain_over_all_together"] == -8
    p_values = [binomtest(only, both, alternative="greater").pvalue for only, both in ((14, 16), (20, 20))]
    assert max(p_values) < 0.025 and found["test_dominate_any_parent_significant"] == 2
    assert found["test_dominate_all_together_significant"] == 0


def test_a_run_that_ends_between_crosses_goes_on_with_the_second(crossed, weights, tmp_path, monkeypatch):
    _, whole = crossed

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(recipe, "next_parent", stop)
        with pytest.raises(KeyboardInterrupt):
            launched(tmp_path, weights, "parents=[first,second,third]", *SETTINGS)
    (folder,) = (tmp_path / "o" / "stitch").iterdir()
    known = evaluations(folder / "cross1")
    assert not (folder / "cross2").exists()
    rows = launched(tmp_path, weights, "parents=[first,second,third]", *SETTINGS)
    assert evaluations(folder / "cross1") == known
    assert [row.series["front_on"] for row in rows] == [row.series["front_on"] for row in whole]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("parents=[first]", "parents: at least two are needed, such as parents=[resnet20,resnet32,resnet56]"),
        ("parents=[]", "parents: at least two are needed"),
        ("parents=[first,second,first]", "parents: first is named twice; name each network once"),
        ("parents=[first,second,fourth]", "parents.2: unknown model 'fourth'"),
        ("b.name=first", "a and b are both first; offspring need two networks, such as model@b=resnet32"),
    ],
)
def test_wrong_parents_are_told_before_anything_starts(weights, tmp_path, given, told):
    problems = check(recipe, composed(tmp_path, weights, given))
    assert len(problems) == 1 and problems[0].startswith(told)


def test_the_next_cross_needs_a_file(weights, tmp_path):
    words = ["parents=[first,second,third]", "num_saved=0"]
    assert check(recipe, composed(tmp_path, weights, *words)) == [
        "num_saved=0: the next cross takes a saved offspring; set num_saved=1"
    ]
    assert check(recipe, composed(tmp_path, weights, "parents=[first,second]", "num_saved=0")) == []
