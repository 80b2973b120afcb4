"""A network composed from a folder of checkpoints: who gives which class, and that it comes apart again."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recombine import models, pnc
from recombine.core.errors import ConfigError
from recombine.models.freeze import digest
from recombine.pnc import recipe
from recombine.pnc.zoo import Offer, choose_offers
from recombine.run.launch import check
from tests.pnc.parts import SHORT, composed, launched

NAMES = {"low": list("01234"), "high": list("56789"), "middle": list("234")}
WHOLE = ["method=compose", "source_data.class_subset=null", "clone=['1','4']"]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory, weights):
    """A folder of the three networks, whose cards name their classes, and of a file that is no network."""
    folder = tmp_path_factory.mktemp("zoo")
    for name, classes in NAMES.items():
        model = models.build(name, weights_root=weights)
        models.save(model, folder / f"{name}.safetensors", {"class_names": classes})
    return folder


def test_each_class_comes_from_the_network_that_gives_it_best(tmp_path, weights, zoo):
    row = launched(tmp_path, weights, *SHORT[:-1], *WHOLE, f"method.zoo={zoo}")
    series = row.series
    assert {*series["offer_source"]} == {"low", "middle"}, "the target itself offers nothing"
    places = {"1": [], "4": []}
    for name, found in places.items():
        known = [recalls.get(name, -1) for recalls in series["offer_recalls"]]
        found += [k for k, value in enumerate(known) if value == max(known)]
        assert any(name in series["offer_chosen"][k] for k in found)
    assert row.cell["classes"] == 2 and set(row.cell["clone"].replace(" + ", " ").split()) == {"1", "4"}
    assert set(row.cell["source"].split(" + ")) <= {"low", "middle"} and row.metrics["logit_shift"] == 0
    target = models.build("high", weights_root=weights)
    before = digest(target)
    (path,) = (tmp_path / "o").rglob("clone.safetensors")
    cloned = pnc.attach(target, path)
    assert {*cloned.class_names} == {*"5678914"}
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    full, (*others, last) = dict(zip(cloned.class_names, cloned(images).T, strict=True)), cloned.list()
    for name in others:
        cloned.detach(name)
    left = dict(zip(cloned.class_names, cloned(images).T, strict=True))
    assert {*left} == {*"56789", *cloned.list()[last]["class_names"]}
    assert all(torch.equal(logits, full[name]) for name, logits in left.items())
    assert digest(cloned.restore()) == before


def test_what_no_network_knows_and_what_is_too_dear(tmp_path, weights, zoo):
    problem = composed(tmp_path, weights, *WHOLE, f"method.zoo={tmp_path}", "method.use_complement=true")
    told = "\n".join(check(recipe, problem))
    assert (
        f"method.zoo={tmp_path}: there is no checkpoint" in told
        and "needs images of all classes of each source" in told
    )
    with pytest.raises(
        ConfigError, match=r"method.max_parameters=10 leaves no network for 1, 4; the smallest clone has"
    ):
        launched(tmp_path, weights, *WHOLE, f"method.zoo={zoo}", "method.max_parameters=10")
    (tmp_path / "few").mkdir()
    middle = models.build("middle", weights_root=weights)
    models.save(middle, tmp_path / "few/middle.safetensors", {"class_names": NAMES["middle"]})
    with pytest.raises(ConfigError, match=r"no network in method.zoo=.*few knows 1; its networks know middle: 2, 3, 4"):
        launched(tmp_path, weights, *WHOLE, f"method.zoo={tmp_path / 'few'}")
    (tmp_path / "nameless").mkdir()
    models.save(middle, tmp_path / "nameless/middle.safetensors", {})
    with pytest.raises(ConfigError, match="knows 1, 4; its networks know no classes by name"):
        launched(tmp_path, weights, *WHOLE, f"method.zoo={tmp_path / 'nameless'}")


OFFERS = st.lists(
    st.tuples(st.dictionaries(st.sampled_from("abc"), st.integers(1, 100), min_size=1), st.integers(1, 50)),
    min_size=1,
    max_size=5,
)


@given(OFFERS, st.integers(1, 120))
@settings(max_examples=60, deadline=None)
def test_choices_keep_the_budget_and_are_best_without_one(drawn, budget):
    offers = [Offer(SimpleNamespace(), k, recalls, cost) for k, (recalls, cost) in enumerate(drawn)]
    names = {name for offer in offers for name in offer.recalls}
    free = choose_offers(offers, None)
    for name in names:
        assert free[name].recalls[name] == max(offer.recalls.get(name, 0) for offer in offers)
    bound = choose_offers(offers, budget)
    assert sum(offer.parameters for offer in {o.position: o for o in bound.values()}.values()) <= budget
    affordable = [offer for offer in offers if offer.parameters <= budget]
    assert bool(bound) == bool(affordable)
    if len(offers) == 1 and bound:
        assert set(bound) == names
    total = sum(bound[name].recalls[name] for name in bound)
    most = 0
    for count in range(1, len(offers) + 1):
        for group in itertools.combinations(offers, count):
            if sum(offer.parameters for offer in group) <= budget:
                best = sum(max(offer.recalls.get(name, 0) for offer in group) for name in names)
                most = max(most, best)
    assert total <= most
