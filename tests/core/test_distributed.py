"""Two processes with gloo do the same as one."""

import json
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from recombine.core import distributed
from recombine.core.errors import ConfigError, Diverged, Interrupted
from recombine.core.types import Batch
from recombine.engine import checkpoint
from recombine.engine.engine import Engine
from recombine.engine.evaluate import predict
from recombine.engine.method import Supervised
from recombine.engine.metrics import Accuracy, PerClass
from recombine.run.device import open_device
from recombine.transfer.contrastive import ContrastiveMemory, ContrastiveSamples
from tests import forked  # noqa: F401  (what children start with)
from tests.core.fitting import CPU, Digits, SmallRun, conv_net, cosine, fit, sgd

WORLD = 2
EVALUATED = range(1400, 1797)  # 397 samples: not divisible by anything that matters


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def process(rank, work, folder, port):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    rank, world = distributed.init(CPU)
    run = SmallRun(Path(folder), rank=rank, world=world)
    try:
        result = work(run)
        Path(folder, f"rank{rank}.json").write_text(json.dumps(result))
    finally:
        distributed.shutdown()


def together(work, folder):
    """What `work(run)` returns on each of two processes."""
    multiprocessing.start_processes(process, (work, str(folder), free_port()), WORLD, start_method="forkserver")
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(WORLD)]


class Watched(Supervised):
    """Remembers the samples of each step; without BatchNorm and dropout, which see only their own process."""

    def __init__(self):
        super().__init__(conv_net(norm=False, dropout=0.0))
        self.seen = []

    def forward(self, batch):
        self.seen.append(batch.index.tolist())
        return super().forward(batch)


def loaders(run):
    shared = {"rank": run.rank, "world": run.world}
    return Digits(range(640), 64, **shared), Digits(EVALUATED, 50, train=False, **shared)


def train(run, **settings):
    settings = {"epochs": 2, "grad_accum_steps": 3, "log_every": 3, "grad_clip_norm": 1.0, "ema_decay": 0.9} | settings
    data, held_out = loaders(run)
    engine, method = Engine(settings, run), Watched()
    measure = engine.evaluator(held_out, {"a": Accuracy((1, 3)), "b": PerClass(10)})
    result = engine.fit(method, data, sgd, cosine, evaluate=measure, best="accuracy")
    weights = torch.cat([value.flatten() for value in result.net.parameters()]).tolist()
    losses = [record["train/loss"] for record in result.history]
    return {"seen": method.seen, "weights": weights, "metrics": result.metrics, "losses": losses}


def close(one, two):
    torch.testing.assert_close(torch.tensor(one), torch.tensor(two), rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train(SmallRun(tmp_path_factory.mktemp("alone")))


def test_two_processes_see_the_same_samples_and_learn_the_same(tmp_path, alone):
    ranks = together(train, tmp_path)
    assert ranks[0]["weights"] == ranks[1]["weights"] and ranks[0]["metrics"] == ranks[1]["metrics"]
    assert [one + two for one, two in zip(ranks[0]["seen"], ranks[1]["seen"], strict=True)] == alone["seen"]
    close(ranks[0]["weights"], alone["weights"])
    close(ranks[0]["losses"], alone["losses"])
    close(list(ranks[0]["metrics"].values()), list(alone["metrics"].values()))


def train_with_batchnorm(run):
    """Every step's batch is normalised whole, and statistics are those of one process."""
    train_data, held_out = loaders(run)
    engine = Engine({"epochs": 2, "log_every": 3}, run)
    measure = engine.evaluator(held_out, {"a": Accuracy()})
    fitted = engine.fit(Supervised(conv_net(dropout=0.0)), train_data, sgd, cosine, evaluate=measure)
    state = fitted.net.state_dict()
    return {"weights": torch.cat([value.float().flatten() for value in state.values()]).tolist(), **fitted.metrics}


def test_batchnorm_is_that_of_the_whole_batch(tmp_path):
    whole = train_with_batchnorm(SmallRun(tmp_path / "alone"))
    first, second = together(train_with_batchnorm, tmp_path)
    assert first == second
    close(first["weights"], whole["weights"])
    close(first["accuracy"], whole["accuracy"])


def remember(run):
    torch.manual_seed(0)
    samples = ContrastiveSamples(torch.arange(8), torch.arange(8) % 2)
    memory = ContrastiveMemory(samples, dimensions=3, negatives=4, temperature=0.5, momentum=0.5)
    before = memory.student.clone()
    mine = torch.arange(4) + 4 * run.rank
    values = torch.nn.functional.normalize(torch.randn(8, 3), dim=1)[mine]
    memory(values, values, Batch(values, samples.labels[mine], mine))
    changed = (memory.student != before).any(1)
    return {"changed": changed.tolist(), "bank": memory.student.tolist(), "constants": memory.constants.tolist()}


def test_a_memory_holds_what_all_processes_saw(tmp_path):
    first, second = together(remember, tmp_path)
    assert first == second and first["changed"] == [True] * 8 and min(first["constants"]) > 0


def stopped_then_resumed(run):
    calls = []
    # only the second process hears of the signal; both must stop at the same step
    run.stop_requested = lambda: calls.append(None) or (signal.SIGTERM if run.rank == 1 and len(calls) == 1 else None)
    try:
        train(run, save_every_steps=3, epochs=4)
    except Interrupted as error:
        stopped = error.exit_code, checkpoint.load_latest(run.dir / "fits" / "fit")["step"]
    run.stop_requested = lambda: None
    resumed = train(run, save_every_steps=3, epochs=4)["weights"]
    whole = train(replace(run, dir=run.dir / "whole"), epochs=4)["weights"]
    return {"stopped": stopped, "same": resumed == whole}


def test_two_processes_stop_and_resume_together(tmp_path):
    assert together(stopped_then_resumed, tmp_path) == [{"stopped": [143, 3], "same": True}] * 2


def everything_once(run):
    _, held_out = loaders(run)
    net = conv_net(norm=False)
    logits, labels, index = predict(net, held_out)
    cached = predict(net_with_digest(net), held_out, run.dir)
    again = predict(net_with_digest(net), held_out, run.dir)
    metric = PerClass(10)
    for batch in held_out.epoch(0):
        metric.update(torch.nn.functional.one_hot(batch.labels, 10).float(), batch)
    counted = distributed.all_reduce_sum(torch.tensor([sum(len(batch.index) for batch in held_out.epoch(0))]))
    same = all(map(torch.equal, cached, again)) and torch.equal(again.logits, logits)
    return {
        "index": index.tolist(),
        "labels": labels.tolist(),
        "logits": logits.tolist(),
        "perfect": metric.compute(),
        "counted": counted.item(),
        "same": same,
    }


def net_with_digest(net):
    net.digest = lambda: "weights"
    return net


def test_every_sample_is_evaluated_once(tmp_path):
    for rank in together(everything_once, tmp_path):
        assert rank["index"] == list(EVALUATED) and rank["counted"] == len(EVALUATED) and rank["same"]
        whole = predict(conv_net(norm=False), Digits(EVALUATED, 50, train=False))
        assert rank["labels"] == whole.labels.tolist() and rank["perfect"] == {"mean_class_accuracy": 100.0}
        close(rank["logits"], whole.logits.tolist())


class Broken(Watched):
    def forward(self, batch):
        step = super().forward(batch)
        return step._replace(loss=step.loss + torch.where((batch.index == 7).any(), float("nan"), 0.0))


def diverging(run):
    data, _ = loaders(run)
    try:
        fit(run.dir, run=run, method=Broken(), train=data, log_every=4)
    except Diverged as error:
        return str(error)


def test_a_bad_batch_of_one_process_stops_both_and_is_named_whole(tmp_path):
    first, second = together(diverging, tmp_path)
    assert first == second and "the loss of step" in first
    facts = json.loads((tmp_path / "fits" / "fit" / "diverged.json").read_text())
    assert 7 in facts["samples"] and len(facts["samples"]) == 64


def gathered(run):
    index = torch.tensor([[3, 1, 8], []][run.rank], dtype=torch.int64)
    one = distributed.gather_by_index(index, index * 10)
    index = torch.tensor([[5, 1], [0, 5, 2]][run.rank])
    two = distributed.gather_by_index(index, index * 10)
    nothing = distributed.gather_by_index(index[:0], index[:0])
    return [[part.tolist() for part in parts] for parts in (one, two, nothing)]


def test_rows_are_gathered_by_index_without_doubles(tmp_path):
    expected = [[[1, 3, 8], [10, 30, 80]], [[0, 1, 2, 5], [0, 10, 20, 50]], [[], []]]
    assert together(gathered, tmp_path) == [expected, expected]


@pytest.mark.parametrize(
    ("device", "told"),
    [
        ("cuda:1", "device=cuda:1: 3 processes need a GPU each; device=cuda gives each its own"),
        ("cuda", "3 processes, and 2 GPUs here: torchrun --nproc-per-node=2"),
        ("auto", "3 processes, and 2 GPUs here: torchrun --nproc-per-node=2"),
    ],
)
def test_processes_that_cannot_have_a_gpu_each_are_told(monkeypatch, device, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ConfigError) as error, open_device(device):
        pass
    assert str(error.value) == told


def test_one_process_is_the_normal_case():
    assert distributed.init(CPU) == (0, 1) and distributed.rank() == 0 and distributed.world() == 1
    tensor = torch.tensor([2.0])
    assert distributed.all_reduce_sum(tensor) is tensor and distributed.maximum(3, 0) == [3, 0]
    assert distributed.gather("x") == ["x"]
    index, value = distributed.gather_by_index(torch.tensor([4, 2, 4]), torch.tensor([[1.0], [2.0], [1.0]]))
    assert index.tolist() == [2, 4] and value.tolist() == [[2.0], [1.0]]
    distributed.barrier()
    distributed.shutdown()
    distributed.shutdown()
