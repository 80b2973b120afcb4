"""Every loader has everything that `recombine.core.types.Loader` promises."""

import numpy as np
import pytest
import torch

from recombine.core.types import Loader
from recombine.data.mixed import LabelOffsetLoader, LoaderWrapper, MixedLoader, RepeatedLoader
from recombine.models import build
from recombine.models.graph import traced
from recombine.patch.cached_features import CachedFeatureLoader
from recombine.patch.delta import Delta
from recombine.patch.patched import TaskNetwork
from recombine.transfer.training import UnlabelledLoader

MEMBERS = [name for name in vars(Loader) if not name.startswith("_")]


def cached(train: Loader) -> CachedFeatureLoader:
    model = build({"name": "resnet8", "weights": None, "size": 8}, classes=10)
    return CachedFeatureLoader(train, TaskNetwork(model, Delta(traced(model), 10, modules=1)), "fp32")


MAKERS = {
    "torch": lambda opened: opened(kind="torch").loader("train", 64, train=True),
    "device": lambda opened: opened(kind="device").loader("train", 64, train=True),
    "ffcv": lambda opened: opened(kind="ffcv").loader("train", 64, train=True),
    "evaluation": lambda opened: opened().loader("test", 64, train=False),
    "wrapper": lambda opened: LoaderWrapper(MAKERS["torch"](opened)),
    "offset": lambda opened: LabelOffsetLoader(MAKERS["torch"](opened), 10),
    "repeated": lambda opened: RepeatedLoader(opened().loader("train", 256, train=True), 3),
    "mixed": lambda opened: MixedLoader([MAKERS["torch"](opened), MAKERS["offset"](opened)], lambda images: images),
    "unlabelled": lambda opened: UnlabelledLoader(MAKERS["torch"](opened)),
    "cached": lambda opened: cached(opened(kind="torch").loader("train", 64, train=True, augment="none")),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_loader_has_every_member_and_they_agree(opened, kind):
    loader = MAKERS[kind](opened)
    assert [name for name in MEMBERS if not hasattr(loader, name)] == []
    for epoch, start in ((0, 0), (2, len(loader) // 2), (1, len(loader))):
        batches = loader.epoch(epoch, start)
        seen = [batch.index.tolist() for batch in batches]
        assert seen == [batch.tolist() for batch in loader.epoch_batches(epoch, start)]
        assert len(seen) == len(loader) - start
        batches.close()
    first = next(batches := loader.epoch(0))
    batches.close()
    assert len(first.index) == loader.batch_size
    assert np.isin(first.index, loader.indices).all() and first.labels.dtype == torch.int64
    assert loader.augment is None and loader.crop is None and loader.size == 8
    assert len({loader.digest, MAKERS["evaluation"](opened).digest}) == (1 if kind == "evaluation" else 2)
    loader.close()
    loader.close()


def test_augmentation_is_known_behind_every_wrapper(opened):
    loader = opened(augment="flip").loader("train", 64, train=True)
    plain = opened().loader("train", 64, train=True)
    for wrapped in (LabelOffsetLoader(loader, 1), RepeatedLoader(loader, 2), MixedLoader([plain, loader], torch.clone)):
        assert wrapped.augment is loader.augment and wrapped.crop is None


def test_each_turn_of_a_repeated_set_has_an_order_of_its_own(opened):
    loader = opened().loader("train", 256, train=True)
    orders = [batch.tolist() for turn in (3, 4, 5) for batch in loader.epoch_batches(turn)]
    assert [batch.tolist() for batch in RepeatedLoader(loader, 3).epoch_batches(1)] == orders
    assert orders[0] != orders[len(loader)]
