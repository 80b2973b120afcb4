"""Validation without decoding, and the command that prepares datasets."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from recombine.core.errors import ConfigError
from recombine.core.settings import find_problems
from recombine.data import open_data
from recombine.data.checks import check as check_files
from recombine.data.settings import DatasetSettings, LoaderSettings
from tests import forked

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "config/dataset").glob("[!_]*.yaml"))


def composed(*overrides):
    with initialize_config_dir(str(ROOT / "config"), version_base="1.3"):
        return compose("prepare/prepare", list(overrides))


def config(data_root, kind="torch", **options):
    node = {"name": "digits", "download": False, **options}
    return {"dataset": node, "loader": {"kind": kind, "workers": "auto"}, "data_root": str(data_root)}


def check(cfg):
    """Everything that an entry would say of its data."""
    wrong = find_problems(LoaderSettings, cfg["loader"], "loader") + find_problems(
        DatasetSettings, cfg["dataset"], "dataset"
    )
    try:
        settings = DatasetSettings.of({key: value for key, value in cfg["dataset"].items() if key != "augment"})
    except ConfigError:
        return wrong
    return wrong + check_files(settings, cfg["data_root"], cfg.get("split"))


@pytest.mark.parametrize("name", NAMES)
def test_every_dataset_config_composes_and_is_accepted(name):
    cfg = composed(f"dataset={name}", *(["dataset.name=mine"] if name == "parquet" else []))
    settings = DatasetSettings.of(cfg.dataset)
    whole, _, half = name.rpartition("_")
    classes = {"cifar100": 100, "tiny_imagenet": 200}.get(whole, 10)
    half = {"low": range(classes // 2), "high": range(classes // 2, classes)}.get(half)
    assert settings.source == (whole if half else name)
    assert settings.folder == whole or not half
    own = {"parquet": "mine", "folder": "data", "masks": "data", "boxes": "data"}  # a folder is called as it is on disk
    assert settings.name == own.get(name, name) and settings.max_side == 512
    assert (list(settings.class_subset) if half else settings.class_subset) == (list(half) if half else None)


def test_overrides_reach_the_data(tmp_path):
    ops = "dataset.augment=[{_target_: recombine.data.augment.Rotation, degrees: 30}]"
    cfg = composed("dataset=digits", "dataset.class_subset=[1,7]", "dataset.max_side=null", ops)
    where = {"data_root": tmp_path, "cache_root": tmp_path, "seed": 0, "device": "cpu"}
    data = open_data(cfg.dataset, loader={"kind": "torch", "workers": 0}, **where)
    assert data.classes == 2 and data.settings.max_side is None
    assert data.loader("train", 8, train=True).augment.operations[0].degrees == 30


def test_good_configs_have_no_problems(tmp_path, photos):
    assert check(config(tmp_path)) == []
    assert check(config(photos.parent, name="photos", source="folder", augment="crop_resize")) == []
    assert check(config(tmp_path, name="cifar10", download=True)) == []


def test_a_split_is_known_before_anything_is_opened(tmp_path, photos):
    assert check({**config(tmp_path), "split": "tst"}) == ["split=tst: digits has train, test"]
    assert check({**config(tmp_path), "split": "val"}) == ["split=val: digits has train, test"]
    assert check({**config(tmp_path, val_fraction=0.1), "split": "val"}) == []
    assert check({**config(tmp_path, name="cifar10", download=True), "split": "test"}) == []
    there = {**config(photos.parent, name="photos", source="folder"), "split": "dev"}
    assert check(there)[0].startswith("split=dev: photos has ")


def test_all_problems_are_reported_together(tmp_path):
    wrong = check(config(tmp_path, kind="fcvv", fraction="half", storage="png", colour=1))
    assert len(wrong) == 4 and "loader.kind=fcvv: one of ffcv, device, torch is needed" in wrong[0]
    assert any("unknown setting dataset.colour" in line for line in wrong)
    wrong = check(config(tmp_path, fraction="half", storage="png", max_side=2))
    assert [line.split("=")[0] for line in wrong] == ["dataset.fraction", "dataset.storage", "dataset.max_side"]
    wrong = check(config(tmp_path, fraction="half", augment="flip_corp"))
    assert [line.split("=")[0] for line in wrong] == ["dataset.fraction", "dataset.augment"]
    wrong = check(config(tmp_path, name="cifar10", label_map="map.json"))
    assert "put there torchvision's CIFAR10 files" in wrong[0] and "dataset.label_map=map.json" in wrong[1]
    assert "dataset.augment=flop: did you mean" in check(config(tmp_path, augment="flop"))[0]


def test_checking_decodes_nothing(photos, monkeypatch):
    monkeypatch.setattr("PIL.Image.open", lambda *_: pytest.fail("an image was opened"))
    assert check(config(photos.parent, name="photos", source="folder")) == []


def test_fake_data_differ_by_class_and_options(opened):
    data = opened("fake", classes=3, samples=30, image_size=12)
    assert data.size == 12 and data.classes == 3 and len(data.indices("train")) == 30
    batch = next(data.loader("train", 30, train=False).epoch(0))
    means = [batch.images[batch.labels == k].float().mean((0, 2, 3)) for k in range(3)]
    assert min(float((means[a] - means[b]).abs().max()) for a, b in ((0, 1), (0, 2), (1, 2))) > 10


def test_unreadable_label_map(opened, photos):
    (photos / "map.json").write_text('{"a": [1.5]}')
    with pytest.raises(ConfigError, match="is no label map"):
        opened("photos", source="folder", root=photos.parent, label_map="map.json")


def prepare(*words):
    return forked.run("prepare", *words, cwd=ROOT)


def test_prepare_converts_several_sets_and_reports_the_absent_one(tmp_path):
    pytest.importorskip("ffcv")
    roots = f"data_root={tmp_path}", f"cache_root={tmp_path / 'c'}"
    done = prepare("dataset=digits,svhn,fake", "-m", "dataset.download=false", *roots)
    assert done.returncode == 2
    assert "svhn: nothing found in" in done.stderr
    assert "1,497" in done.stdout and "512" in done.stdout
    assert len(list((tmp_path / "c/betons").glob("*.beton"))) == 4
    assert not list(tmp_path.rglob("*.part"))
    assert not (ROOT / "prepare.log").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dataset=cifr10", "data_rot=x"], ["there is no dataset 'cifr10'", "did you mean 'data_root'"]),
        (["dataset=parquet"], ["dataset.name: a value is needed"]),
    ],
)
def test_prepare_answers_a_wrong_command_without_a_traceback(words, said, tmp_path):
    done = prepare(*words, f"cache_root={tmp_path}")
    assert done.returncode == 2 and all(part in done.stderr for part in said)
    assert "Traceback" not in done.stderr
