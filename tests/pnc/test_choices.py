"""Positions, baselines and networks are chosen on images kept for selection, never on test images."""

import pytest
import torch

from recombine import models
from tests.leaks import of_test, spoil
from tests.pnc.parts import SHORT, launched, open_parts

CHOICES = {
    "method.search.metric=average": ("search_", "position"),
    "method.search.metric=similarity": ("search_similarity", "position"),
    "method=finetune tuning_epochs=1 method.min_steps=4 method.lr_factors=[1]": (
        "",
        "select_average strength learning_rate",
    ),
    "method=compose": ("offer_", ""),
}


def chosen(folder, weights, case):
    """What decided, and the accuracy on the test images."""
    prefix, metrics = CHOICES[case]
    words = case.split()
    if case == "method=compose":
        words += ["source_data.class_subset=null", "clone=['1','4']", f"method.zoo={folder.parent / 'zoo'}"]
        words += SHORT[:3]
    elif "search" in case:
        words += SHORT
    row = launched(folder, weights, *words)
    found = {key: value for key, value in row.series.items() if prefix and key.startswith(prefix)}
    found = {key: value for key, value in found.items() if "parameters" not in key}
    return found | {name: row.metrics[name] for name in metrics.split()}, row.metrics["accuracy_average"]


@pytest.mark.parametrize("case", CHOICES)
def test_other_test_images_change_no_choice_and_other_images_for_selection_do(tmp_path, weights, case, monkeypatch):
    if case == "method=compose":
        for name, classes in {"low": "01234", "middle": "234"}.items():
            model = models.build(name, weights_root=weights)
            models.save(model, tmp_path / "zoo" / f"{name}.safetensors", {"class_names": list(classes)})
    before, accuracy = chosen(tmp_path / "as they are", weights, case)
    with monkeypatch.context() as patched:
        spoil(patched, of_test)
        found, spoilt = chosen(tmp_path / "test", weights, case)
    assert before and found == before and spoilt < accuracy
    if case == "method=compose":
        return
    with open_parts(tmp_path, weights) as parts:
        kept = [torch.from_numpy(parts.data.split(each, "select")) for each in (parts.data.target, parts.data.cloned)]
    places = torch.cat(kept)
    spoil(monkeypatch, lambda loader, index: (loader.split.name == "train") & torch.isin(index, places))
    assert chosen(tmp_path / "select", weights, case)[0] != before
