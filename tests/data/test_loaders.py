"""The three loaders give the same samples, order and pixels, wherever an epoch starts and whoever shares it."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from recombine.core.counter_rng import permutation
from recombine.core.errors import ConfigError

pytest.importorskip("ffcv")
KINDS = ("ffcv", "device", "torch")


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def batches(loader, epoch=0, start=0):
    return list(loader.epoch(epoch, start))


@pytest.mark.parametrize("augment", ["none", "flip_crop", "paper_transfer"])
def test_three_loaders_agree_exactly_on_raw_storage(opened, augment):
    seen = [batches(opened(kind=kind, augment=augment).loader("train", 64, train=True), 3) for kind in KINDS]
    for other in seen[1:]:
        assert all(equal(a, b) for a, b in zip(seen[0], other, strict=True))
    assert seen[0][0].images.shape == (64, 3, 8, 8)
    assert seen[0][0].images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [96, 224])
def test_three_loaders_agree_exactly_on_photographs(opened, data_root, size):
    """Measured, not assumed: libjpeg-turbo and OpenCV under FFCV against Pillow and opencv-python, no difference."""
    made = [opened("imagenette160", kind, source="parquet", root=data_root, test_fraction=0.2) for kind in KINDS]
    seen = [batches(data.loader("test", 64, train=False, size=size)) for data in made]
    for other in seen[1:]:
        assert max(int((a.images.int() - b.images.int()).abs().max()) for a, b in zip(seen[0], other, strict=True)) == 0


def test_random_resized_crops_agree_exactly(opened, photos):
    made = [opened("photos", k, source="folder", root=photos.parent, augment="crop_resize") for k in ("ffcv", "torch")]
    loaders = [data.loader("train", 10, train=True, size=64) for data in made]
    for epoch in (0, 1):
        one, other = (batches(loader, epoch) for loader in loaders)
        assert all(equal(a, b) for a, b in zip(one, other, strict=True))
    first, second = (
        {int(i): x for batch in batches(loaders[0], epoch) for i, x in zip(batch.index, batch.images, strict=True)}
        for epoch in (0, 1)
    )
    assert first.keys() == second.keys() and not any(torch.equal(first[i], second[i]) for i in first)


def test_every_image_kind_agrees(opened, photos):
    """JPEG in colour and grey, PNG, an image above max_side, with jpeg and raw storage."""
    big = Image.effect_noise((700, 640), 60).convert("RGB")
    big.save(photos / "class0/big.jpg", quality=80)
    for storage in ("jpeg", "raw"):
        made = [opened("photos", kind, source="folder", root=photos.parent, storage=storage) for kind in KINDS]
        seen = [batches(data.loader("train", 8, train=False, size=100)) for data in made]
        for other in seen[1:]:
            assert all(equal(a, b) for a, b in zip(seen[0], other, strict=True))


def test_evaluation_is_the_centre_square_of_the_original(opened, data_root):
    import cv2
    import pyarrow.parquet as pq

    loader = opened("imagenette160", "ffcv", source="parquet", root=data_root).loader("test", 16, train=False, size=128)
    batch = next(loader.epoch(0))
    rows = next(pq.ParquetFile(data_root / "imagenette160/test-00000-of-00001.parquet").iter_batches(16)).to_pylist()
    for image, row in zip(batch.images, rows, strict=True):
        real = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"))
        side = min(real.shape[:2])
        top, left = (real.shape[0] - side) // 2, (real.shape[1] - side) // 2
        expected = cv2.resize(real[top : top + side, left : left + side], (128, 128), interpolation=cv2.INTER_AREA)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_stored_pixels_are_the_sources(opened, data_root, kind):
    batch = next(opened("usps", kind, root=data_root).loader("test", 32, train=False).epoch(0))
    samples = opened("usps", "torch", root=data_root).source.samples("test")
    for i, (image, label) in enumerate(zip(batch.images, batch.labels, strict=True)):
        real = np.asarray(Image.open(io.BytesIO(samples[i])).convert("RGB"))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), real)
        assert label == samples.labels[i]


@pytest.mark.parametrize("kind", KINDS)
def test_starting_in_the_middle_gives_the_rest_of_the_epoch(opened, kind):
    loader = opened(kind=kind, augment="paper_transfer").loader("train", 100, train=True)
    whole = batches(loader, 4)
    assert len(whole) == len(loader) == 14
    rest = batches(loader, 4, 9)
    assert all(equal(a, b) for a, b in zip(whole[9:], rest, strict=True))
    assert batches(loader, 4, 14) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("train", [True, False])
def test_ranks_share_every_batch(opened, kind, train):
    alone = batches(opened(kind=kind, augment="flip_crop").loader("train", 64, train=train), 1)
    parts = [opened(kind=kind, augment="flip_crop", rank=r, world=4).loader("train", 64, train=train) for r in range(4)]
    shared = [batches(part, 1) for part in parts]
    for step, batch in enumerate(alone):
        together = [torch.cat(tensors) for tensors in zip(*(rank[step] for rank in shared), strict=True)]
        assert equal(batch, together)
    assert len({part.digest for part in parts}) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch_size", "world"), [(7, 1), (299, 1), (512, 1), (64, 3), (128, 8)])
def test_evaluation_sees_every_sample_once(opened, kind, batch_size, world):
    index = []
    for rank in range(world):
        loader = opened(kind=kind, rank=rank, world=world).loader("test", batch_size, train=False)
        index += [int(i) for batch in loader.epoch(0) for i in batch.index]
        assert loader.samples == 300
    assert sorted(index) == list(range(300))


def test_order_is_the_addressed_permutation(opened):
    data = opened(seed=11, fraction=0.5)
    chosen = data.indices("train")
    order = torch.cat([batch.index for batch in data.loader("train", 50, train=True).epoch(2)])
    expected = chosen[permutation(11, 2, len(chosen))]
    assert np.array_equal(order.numpy(), expected[: len(expected) // 50 * 50])


@pytest.mark.parametrize("kind", KINDS)
def test_batches_belong_to_the_caller(opened, kind):
    loader = opened(kind=kind).loader("test", 20, train=False)
    kept = batches(loader)
    copies = [batch.images.clone() for batch in loader.epoch(0)]
    assert len(kept) == 15 > 5  # more than FFCV has buffers
    assert all(torch.equal(batch.images, copy) for batch, copy in zip(kept, copies, strict=True))
    kept[0].images.zero_()
    assert torch.equal(next(loader.epoch(0)).images, copies[0])


@pytest.mark.parametrize("kind", KINDS)
def test_last_batch_of_one_keeps_its_shape(opened, kind):
    last = batches(opened(kind=kind).loader("test", 299, train=False))[-1]
    assert last.images.shape == (1, 3, 8, 8) and last.labels.shape == last.index.shape == (1,)


@pytest.mark.parametrize("kind", KINDS)
def test_global_random_state_is_untouched(opened, photos, kind):
    loader = opened("photos", kind, source="folder", root=photos.parent).loader("test", 2, train=False, size=32)
    torch.manual_seed(3)
    np.random.seed(3)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    batches(loader)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_worker_processes_change_nothing(opened, photos):
    options = {"source": "folder", "root": photos.parent, "augment": "crop_resize"}
    seen = [
        batches(opened("photos", "torch", workers=w, **options).loader("train", 5, train=True, size=48)) for w in (0, 2)
    ]
    assert all(equal(a, b) for a, b in zip(*seen, strict=True))


def test_digest_names_samples_indices_and_size(opened, photos):
    data = opened("photos", source="folder", root=photos.parent)
    digest = data.loader("test", 2, train=False, size=32).digest
    assert digest == data.loader("test", 4, train=False, size=32, augment="flip").digest
    others = [
        data.loader("test", 2, train=False, size=48),
        data.loader("train", 2, train=False, size=32),
        data.loader("test", 2, train=False, size=32, indices=[0, 1]),
        opened("photos", source="folder", root=photos.parent, storage="raw").loader("test", 2, train=False, size=32),
    ]
    assert len({digest, *(loader.digest for loader in others)}) == 5


def test_choice_of_samples_and_augmentation(opened):
    data = opened(augment="flip")
    loader = data.loader("train", 2, train=False, indices=[9, 4, 5])
    assert torch.cat([batch.index for batch in loader.epoch(0)]).tolist() == [4, 5, 9]
    assert data.loader("train", 2, train=True).augment is not None
    assert data.loader("train", 2, train=True, augment=False).augment is None
    assert data.loader("train", 2, train=False).augment is None
    assert data.size == 8


def test_impossible_loaders_say_why(opened, photos):
    data = opened(class_subset=[1, 2])
    with pytest.raises(ConfigError, match="has no split val: it has train, test"):
        data.loader("val", 8, train=False)
    with pytest.raises(ConfigError, match="fewer than a batch of 5000; batch_size="):
        data.loader("train", 5000, train=True)
    with pytest.raises(ConfigError, match="not in use"):
        data.loader("train", 8, train=True, indices=np.arange(20))
    with pytest.raises(ConfigError, match="needs size="):
        opened("photos", source="folder", root=photos.parent).loader("train", 8, train=True)
    with pytest.raises(ConfigError, match="does not divide over 3"):
        opened(world=3).loader("train", 64, train=True)
    with pytest.raises(ConfigError, match="cannot do RandomResizedCrop"):
        opened(kind="device", augment="crop_resize").loader("train", 8, train=True)


def test_an_image_of_another_size_is_named(opened, tmp_path):
    for k in range(600):
        folder = tmp_path / f"tiny/{k % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 17 if k == 301 else 16)).save(folder / f"{k:03}.png")
    options = {"source": "folder", "root": tmp_path}
    for kind in ("torch", "ffcv"):
        with pytest.raises(ConfigError, match=r"301.png is 16 x 17 px while others are 16 x 16: dataset.storage=jpeg"):
            for split in ("train", "test"):
                batches(opened("tiny", kind, **options).loader(split, 64, train=False))


def test_without_ffcv_the_torch_loader_serves_and_says_so_once(opened, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "recombine.data.ffcv", None)
    monkeypatch.setattr("recombine.data.dataset._reported", set())
    made = [opened(kind=kind).loader("test", 64, train=False) for kind in ("ffcv", "ffcv", "device")]
    assert [type(loader).__name__ for loader in made] == ["TorchLoader", "TorchLoader", "DeviceLoader"]
    assert [record.message for record in caplog.records if "FFCV does not load" in record.message] != []
    assert len(caplog.records) == 1
    monkeypatch.undo()
    real = opened(kind="ffcv").loader("test", 64, train=False)
    assert all(equal(a, b) for a, b in zip(batches(made[2]), batches(real), strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["torch", "device"])
def test_batches_on_a_gpu_equal_those_on_the_cpu(opened, kind):
    made = [opened(kind=kind, device=device, augment="paper_transfer") for device in ("cpu", "cuda")]
    cpu, gpu = (batches(data.loader("train", 64, train=True), 1) for data in made)
    for one, other in zip(cpu, gpu, strict=True):
        assert other.images.device.type == "cuda"
        assert (one.images.int() - other.images.cpu().int()).abs().max() <= 1
        assert torch.equal(one.labels, other.labels.cpu()) and torch.equal(one.index, other.index.cpu())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["torch", "device"])
def test_batches_on_a_gpu_wait_for_nothing(opened, kind):
    loader = opened(kind=kind, device="cuda", augment="paper_transfer").loader("train", 64, train=True)
    stream = loader.epoch(0)
    next(stream)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in stream:
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")
