"""Every sample once, and predictions that are computed once."""

import logging
import threading

import pytest
import torch
from torch import nn

from recombine.core.errors import ConfigError
from recombine.engine.class_predictions import predict_classes
from recombine.engine.engine import Engine
from recombine.engine.evaluate import evaluate, evaluating, predict, resolve
from recombine.engine.metrics import Accuracy, PerClass
from tests.core.fitting import CPU, Digits, SmallRun, conv_net, digits

INDICES = [1700, 3, 900, 5, *range(1000, 1100)]


class Net(nn.Module):
    """A net with what caches and input sizes need; counts its forward passes."""

    def __init__(self, seed=0, canvas=8):
        super().__init__()
        self.net, self.canvas, self.seed, self.images = conv_net(seed), canvas, seed, 0

    def forward(self, images):
        self.images += len(images)
        return self.net(images)

    def digest(self):
        return f"net-{self.seed}"


class Ordered(Digits):
    """Evaluation batches in the order of the indices, as they come."""

    def __init__(self, batch_size=16, indices=INDICES):
        super().__init__(indices, batch_size, train=False)


@pytest.fixture(scope="module")
def truth():
    """Logits of a plain forward pass over the sorted samples."""
    images, labels = digits()
    index = torch.tensor(sorted(INDICES))
    with torch.no_grad():
        return conv_net().eval()(images[index]), labels[index], index


@pytest.mark.parametrize("batch_size", [1, 7, 16, 104, 500])
def test_every_sample_once_at_any_batch_size(truth, batch_size):
    model = Net()
    predictions = predict(model, Ordered(batch_size))
    assert model.images == len(INDICES)
    torch.testing.assert_close(predictions.logits, truth[0])
    assert torch.equal(predictions.labels, truth[1]) and torch.equal(predictions.index, truth[2])
    accuracy = 100 * (truth[0].argmax(1) == truth[1]).double().mean().item()
    assert evaluate(model, Ordered(batch_size), {"a": Accuracy()}) == {"accuracy": pytest.approx(accuracy)}


def test_evaluation_leaves_modes_gradients_and_weights_alone():
    model = Net().train()
    model.net[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, Ordered(), {"a": Accuracy()})
    assert model.training and not model.net[2].training and model.net[8].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with evaluating(model):
        assert not model.net[8].training and not torch.is_grad_enabled()
    model.net(digits()[0][:4]).sum().backward()


def test_metrics_are_reset_and_merged():
    metrics = {"a": Accuracy((1, 5)), "b": PerClass(10)}
    first = evaluate(Net(), Ordered(), metrics)
    assert first.keys() == {"accuracy", "top5", "mean_class_accuracy"} and evaluate(Net(), Ordered(), metrics) == first
    with pytest.raises(ConfigError, match="same name: accuracy, accuracy"):
        evaluate(Net(), Ordered(), {"a": Accuracy(), "b": Accuracy()})


def test_max_batches_closes_the_loader():
    model, loader = Net(), Ordered()
    evaluate(model, loader, {"a": Accuracy()}, max_batches=2)
    assert model.images == 32 and loader.opened == loader.closed == 1


def test_precision_is_resolved_by_device():
    assert resolve("auto", CPU) == "fp32" and resolve("bf16", CPU) == "bf16"
    with pytest.raises(ConfigError, match=r"engine.precision=half"):
        resolve("half", CPU)
    assert predict(Net(), Ordered(), precision="bf16").logits.dtype == torch.float32


def test_networks_are_measured_in_fp32_whatever_they_train_in(tmp_path):
    seen = []

    class Watched(Net):
        def forward(self, images):
            out = super().forward(images)
            tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
            seen.append((out.dtype, *tf32))
            return out

    before = torch.backends.cudnn.allow_tf32
    for settings in ({"precision": "bf16"}, {"precision": "bf16", "eval_precision": "bf16"}):
        Engine(settings, SmallRun(tmp_path)).evaluator(Ordered(), {"accuracy": Accuracy()})(Watched())
    assert seen[0] == (torch.float32, False, False) and seen[-1] == (torch.bfloat16, False, False)
    assert torch.backends.cudnn.allow_tf32 == before


def test_cached_predictions_are_not_computed_again(tmp_path, truth):
    first, second = Net(), Net()
    one = predict(first, Ordered(), tmp_path)
    two = predict(second, Ordered(50), tmp_path)
    assert (first.images, second.images) == (len(INDICES), 0)
    assert all(map(torch.equal, one, two)) and torch.equal(two.index, truth[2])
    kept = [path.suffix for path in sorted(tmp_path.rglob("*"))]
    assert kept == ["", ".lock", ".safetensors"], "the folder, one file and the lock of who writes it"


@pytest.mark.parametrize("change", ["weights", "data", "precision"])
def test_other_weights_data_or_precision_are_other_predictions(tmp_path, change):
    predict(Net(), Ordered(), tmp_path)
    model = Net(seed=int(change == "weights"))
    loader = Ordered(indices=INDICES[1:] if change == "data" else INDICES)
    predict(model, loader, tmp_path, precision="bf16" if change == "precision" else "auto")
    assert model.images == loader.samples


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "foreign"])
def test_a_damaged_cache_file_is_computed_again(tmp_path, truth, damage, caplog):
    predict(Net(), Ordered(), tmp_path)
    (path,) = tmp_path.rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    damaged = {"empty": b"", "truncated": bytes(content[:-50]), "flipped": bytes(content), "foreign": b"x" * 400}
    path.write_bytes(damaged[damage])
    model = Net()
    with caplog.at_level(logging.WARNING):
        assert torch.equal(predict(model, Ordered(), tmp_path).labels, truth[1])
    assert model.images == len(INDICES) and "computed again" in caplog.text
    untouched = Net()
    predict(untouched, Ordered(), tmp_path)
    assert untouched.images == 0


def test_several_writers_of_one_file_do_not_disturb_each_other(tmp_path, truth):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(predict(Net(), Ordered(), tmp_path / "c"))) for _ in range(6)
    ]
    digits()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6 and all(torch.equal(result.labels, truth[1]) for result in results)
    left = sorted(path.suffix for path in (tmp_path / "c" / "predictions").iterdir())
    assert left == [".lock", ".safetensors"]


def test_class_predictions_are_those_of_the_logits(tmp_path, truth):
    logits, labels, index = truth
    found = predict_classes(Net(), Ordered(), tmp_path, keep_logits=True)
    probabilities = logits.double().softmax(1)
    assert torch.equal(found.classes.long(), logits.argmax(1)) and torch.equal(found.index, index)
    torch.testing.assert_close(found.confidence.double(), probabilities.amax(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.label_probability.double(), probabilities[range(len(labels)), labels])
    torch.testing.assert_close(found.logits.float(), logits, rtol=1e-3, atol=1e-3)
    again = Net()
    assert predict_classes(again, Ordered(), tmp_path).logits is None and again.images == 0


def test_networks_are_evaluated_once_also_by_processes_at_the_same_time(tmp_path):
    """Threads stand for processes: a file lock belongs to an open file."""
    models = [Net() for _ in range(4)]
    found = []
    threads = [
        threading.Thread(target=lambda m=model: found.append(predict_classes(m, Ordered(), tmp_path)))
        for model in models
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(model.images for model in models) == len(INDICES)
    assert all(torch.equal(each.classes, found[0].classes) for each in found)
