"""What is not finite stops a training, is named, and never replaces a good checkpoint."""

import json

import pytest
import torch

from recombine.core.errors import Diverged
from recombine.engine import checkpoint
from recombine.engine.method import Supervised
from tests.core.fitting import Digits, conv_net, fit


class Breaks(Supervised):
    """Its loss or gradient stops being finite where a certain sample is in the batch."""

    def __init__(self, sample, what="loss"):
        super().__init__(conv_net())
        self.sample, self.what = sample, what

    def forward(self, batch):
        step = super().forward(batch)
        hit = (batch.index == self.sample).any()
        if self.what == "loss":
            return step._replace(loss=step.loss + torch.where(hit, float("inf"), 0.0))
        # sqrt has an infinite slope at 0: the loss is fine, the gradient is not
        zero = (self.net[1].weight.sum() * 0).abs()
        return step._replace(loss=step.loss + torch.where(hit, zero, zero + 1).sqrt())


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_value_that_is_not_finite_stops_and_names_its_batch(tmp_path, what, accumulate):
    train = Digits(range(640))
    batches = [batch.index.tolist() for batch in map(lambda b: b._replace(index=b.index.clone()), train.epoch(1))]
    sample = batches[4][0]
    # the first epoch has the sample too, so the loss breaks only once training has begun in earnest
    method = Breaks(sample, what)
    method.on_epoch = lambda epoch: setattr(method, "sample", sample if epoch == 1 else -1)
    with pytest.raises(Diverged) as error:
        fit(
            tmp_path,
            method=method,
            train=train,
            epochs=3,
            log_every=4,
            save_every_steps=1,
            grad_accum_steps=accumulate,
        )
    assert error.value.exit_code == 4
    facts = json.loads((tmp_path / "fits" / "fit" / "diverged.json").read_text())
    step = 14 if accumulate == 1 else 7
    assert (facts["what"], facts["step"], facts["epoch"]) == (what, step, 1)
    group = batches[4] + batches[5] * (accumulate == 2 and what == "gradient")
    assert facts["samples"] == group and facts["checkpoint"].endswith("last.pt")
    fine = f"everything before step {facts['last_log_point']} was fine"
    where = f"the {what} of step {step} (epoch 1)"
    for words in (where, fine, facts["checkpoint"], "optimizer.lr", "engine.grad_clip_norm=1"):
        assert words in str(error.value)
    state = checkpoint.load_latest(tmp_path / "fits" / "fit")
    assert state["step"] <= step + 1 and all(v.isfinite().all() for v in state["method"].values())
    assert train.opened == train.closed


def test_a_first_step_that_is_not_finite_has_nothing_fine_before_it(tmp_path):
    train = Digits(range(640))
    with pytest.raises(Diverged) as error:
        fit(tmp_path, method=Breaks(next(train.epoch(0)).index[0].item(), "loss"), train=train, log_every=4)
    assert "of step 0 (epoch 0)" in str(error.value) and "was fine" not in str(error.value)


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    class Poisoned(Supervised):
        def after_update(self, step):
            if step == 5:
                with torch.no_grad():
                    self.net[1].weight[0, 0, 0, 0] = float("inf")

    with pytest.raises(Diverged, match="the weights of step 5"):
        fit(tmp_path, method=Poisoned(conv_net()), save_every_steps=1, log_every=50)
    assert checkpoint.load_latest(tmp_path / "fits" / "fit")["step"] == 5
