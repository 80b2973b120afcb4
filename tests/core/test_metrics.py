"""Metrics against torchmetrics and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, log_loss, recall_score
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from recombine.core.errors import ConfigError
from recombine.core.types import Batch
from recombine.engine.metrics import Accuracy, Mean, PerClass

CLASSES = 7


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    sizes = (40, 1, 33)
    return [
        (
            torch.randn(size, CLASSES, generator=generator) * 2,
            Batch(None, torch.randint(CLASSES - 1, (size,), generator=generator), torch.arange(size)),
        )
        for size in sizes
    ]


def feed(metric, batches):
    for logits, batch in batches:
        metric.update(logits, batch)
    return metric.compute()


def together(batches):
    return torch.cat([logits for logits, _ in batches]), torch.cat([batch.labels for _, batch in batches])


def test_accuracy_is_torchmetrics(batches):
    logits, labels = together(batches)
    values = feed(Accuracy((1, 3, 5)), batches)
    assert list(values) == ["accuracy", "top3", "top5"]
    for k in (1, 3, 5):
        reference = MulticlassAccuracy(CLASSES, top_k=k, average="micro")(logits, labels)
        assert values["accuracy" if k == 1 else f"top{k}"] == pytest.approx(100 * reference.item(), rel=1e-6)


def test_more_places_than_classes_is_certain(batches):
    assert feed(Accuracy((1, 50)), batches)["top50"] == 100


def test_per_class_is_scikit_learn(batches):
    logits, labels = together(batches)
    metric = PerClass(CLASSES)
    values = feed(metric, batches)
    guesses = logits.argmax(1)
    with np.errstate(invalid="ignore"):
        recall = recall_score(labels, guesses, labels=range(CLASSES), average=None, zero_division=np.nan)
    np.testing.assert_allclose(metric.accuracy, 100 * recall)  # the last class has no sample: NaN in both
    assert np.isnan(metric.accuracy[-1])
    seen = labels.unique()
    only_seen = torch.where(torch.isin(guesses, seen), guesses, seen[0] + (labels == seen[0]))
    assert values["mean_class_accuracy"] == pytest.approx(100 * balanced_accuracy_score(labels, only_seen))


def test_mean_is_scikit_learn_s_log_loss(batches):
    logits, labels = together(batches)
    mean = Mean("loss", lambda logits, batch: F.cross_entropy(logits, batch.labels, reduction="none"))
    reference = log_loss(labels, logits.double().softmax(1), labels=range(CLASSES))
    assert feed(mean, batches)["loss"] == pytest.approx(reference, rel=1e-6)


def test_mean_wants_one_value_per_sample(batches):
    with pytest.raises(ConfigError, match="metric loss gave shape"):
        feed(Mean("loss", lambda logits, batch: logits.mean()), batches)


def test_reset_and_computing_twice(batches):
    metric = Accuracy()
    first = feed(metric, batches)
    assert metric.compute() == first
    metric.reset()
    assert feed(metric, batches) == first
    assert feed(metric, batches) == pytest.approx(first)  # twice the same samples


def test_updating_never_reads(batches, monkeypatch):
    def refused(*_):
        raise AssertionError("a metric read a tensor")

    metrics = [Accuracy((1, 5)), PerClass(CLASSES), Mean("zero", lambda logits, batch: logits[:, 0])]
    with monkeypatch.context() as patch:
        for name in ("item", "cpu", "tolist", "__bool__", "__float__", "__int__"):
            patch.setattr(torch.Tensor, name, refused)
        for metric in metrics:
            for logits, batch in batches:
                metric.update(logits, batch)
    assert all(metric.compute() for metric in metrics)
