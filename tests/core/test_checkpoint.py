"""A checkpoint is whole or absent, whatever fails while it is written."""

import errno
import logging
import os
import random

import numpy as np
import pytest
import torch

from recombine.core.errors import ConfigError, WriteError
from recombine.core.random_state import preserved_rng, restore_rng, rng_state, seed_everything
from recombine.engine import checkpoint
from recombine.engine.checkpoint import load_latest, save
from tests.core.fitting import CPU, fit, same


def steps(folder):
    return {path.name: torch.load(path, weights_only=True)["step"] for path in folder.iterdir()}


def test_the_latest_is_loaded_and_one_older_is_kept(tmp_path):
    assert load_latest(tmp_path) is None and load_latest(tmp_path / "absent") is None
    for step in (1, 2, 3):
        save(tmp_path, {"step": step, "weights": torch.ones(3) * step})
    assert steps(tmp_path) == {"last.pt": 3, "prev.pt": 2}
    state = load_latest(tmp_path)
    assert state["step"] == 3 and torch.equal(state["weights"], torch.ones(3) * 3)


def fail(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def torn(state, stream):
    stream.write(b"PK half a file")
    fail()


def short(state, stream):
    stream.write(b"PK this disk loses what it was given")


@pytest.mark.parametrize(
    ("target", "broken"),
    [
        ("torch.save", fail),
        ("torch.save", torn),
        ("torch.save", short),
        ("os.fsync", fail),
        ("os.replace", fail),
        ("builtins.open", fail),
    ],
)
def test_a_failing_disk_leaves_the_old_checkpoints(tmp_path, monkeypatch, target, broken):
    save(tmp_path, {"step": 1})
    save(tmp_path, {"step": 2})
    with monkeypatch.context() as patch:
        patch.setattr(target, broken)
        with pytest.raises(WriteError):
            save(tmp_path, {"step": 3})
    assert load_latest(tmp_path)["step"] == 2
    save(tmp_path, {"step": 4})
    assert load_latest(tmp_path)["step"] == 4 and not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("survives", [1, 2])
def test_death_at_each_rename_leaves_a_checkpoint(tmp_path, monkeypatch, survives):
    save(tmp_path, {"step": 1})
    save(tmp_path, {"step": 2})
    calls, replace = [], os.replace

    def dying(*paths):
        calls.append(None)
        if len(calls) == survives:
            raise KeyboardInterrupt
        replace(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, {"step": 3})
    assert load_latest(tmp_path)["step"] == 2
    save(tmp_path, {"step": 4})
    assert steps(tmp_path)["last.pt"] == 4


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_a_truncated_file_falls_back_to_the_one_before_with_a_warning(tmp_path, caplog, keep):
    save(tmp_path, {"step": 1, "weights": torch.rand(1000)})
    save(tmp_path, {"step": 2, "weights": torch.rand(1000)})
    last = tmp_path / "last.pt"
    content = last.read_bytes()
    last.write_bytes(content[: int(keep * len(content))])
    with caplog.at_level(logging.WARNING):
        assert load_latest(tmp_path)["step"] == 1
    assert "last.pt is damaged" in caplog.text
    (tmp_path / "prev.pt").write_bytes(b"nothing")
    assert load_latest(tmp_path) is None


def change_a_bit(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"WEIGHTS!") + 100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        change_a_bit,
        lambda path: torch.save({}, path),
        lambda path: torch.save(torch.ones(3), path),
        lambda path: torch.save({"step": 2, "format": 1, "keys": ["journal", "step"]}, path),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_what_is_not_as_it_was_written_is_not_read(tmp_path, caplog, damage):
    marked = torch.frombuffer(bytearray(b"WEIGHTS!" + bytes(1000)), dtype=torch.uint8)
    save(tmp_path, {"step": 1, "journal": 0})
    save(tmp_path, {"step": 2, "journal": 0, "weights": marked})
    damage(tmp_path / "last.pt")
    assert load_latest(tmp_path)["step"] == 1 and "last.pt is damaged" in caplog.text


def test_a_fit_goes_on_from_the_one_before(tmp_path, caplog):
    whole = fit(tmp_path / "a", epochs=2).net
    fit(tmp_path / "b", epochs=2, save_every_steps=6)
    (tmp_path / "b" / "fits" / "fit" / "last.pt").write_bytes(b"")
    assert same(fit(tmp_path / "b", epochs=2).net, whole) and "damaged" in caplog.text


def test_code_in_a_checkpoint_is_not_run(tmp_path, caplog):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "hacked"),)

    torch.save({"step": Evil(), "format": 1}, tmp_path / "last.pt")  # a whole file, and no state of ours
    assert load_latest(tmp_path) is None and not (tmp_path / "hacked").exists()


def test_another_format_is_named(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 7)
        save(tmp_path, {"step": 1})
    with pytest.raises(ConfigError, match="checkpoint format 7, this version reads 1"):
        load_latest(tmp_path)


def draw():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(2).tolist()


def test_random_state_survives_a_file(tmp_path):
    seed_everything(2**63 + 5)
    draw()  # leaves half of a pair of normal numbers behind in Python's and NumPy's generators
    save(tmp_path, {"rng": rng_state(CPU)})
    expected = draw(), draw()
    restore_rng(load_latest(tmp_path)["rng"], CPU)
    assert (draw(), draw()) == expected
    seed_everything(2**63 + 5)
    draw()
    with preserved_rng(CPU):
        draw()
    assert draw() == expected[0]
