"""What is durable is whole or absent, says what it holds, and a full disk is one sentence."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recombine.core.errors import ConfigError, DamagedError, WriteError
from recombine.core.files import (
    append_records,
    check_writable,
    read_json,
    read_records,
    read_tensors,
    replacing,
    write_atomically,
    write_json,
    write_records,
    write_tensors,
    writing,
)
from recombine.core.locks import exclusive

TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "none": torch.zeros(0, 4),
}


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def test_what_is_written_comes_back(tmp_path):
    write_json(tmp_path / "a.json", {"name": "ä", 3: [1.5, None], "inner": {"10": 1, "9": (2,)}})
    assert read_json(tmp_path / "a.json") == {"name": "ä", "3": [1.5, None], "inner": {"10": 1, "9": [2]}}
    write_records(tmp_path / "a.jsonl", [{"k": 1}])
    append_records(tmp_path / "a.jsonl", [{"k": 2}, {"k": float("inf")}])
    assert read_records(tmp_path / "a.jsonl") == ([{"k": 1}, {"k": 2}, {"k": float("inf")}], 0)
    write_tensors(tmp_path / "a.safetensors", TENSORS, {"kind": "test"})
    tensors, metadata = read_tensors(tmp_path / "a.safetensors")
    assert metadata == {"kind": "test"} and all(torch.equal(tensors[key], TENSORS[key]) for key in TENSORS)
    write_json(tmp_path / "a.json", {"name": "new"})
    assert read_json(tmp_path / "a.json") == {"name": "new"}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~mask()}


def mask():
    now = os.umask(0)
    os.umask(now)
    return now


def test_any_changed_bit_of_a_small_file_is_seen(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"accuracy": 12.5, "name": "x"})
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content)
        flip(path, place)
        try:
            assert read_json(path) == {"accuracy": 12.5, "name": "x"}  # white space
        except DamagedError as error:
            assert str(path) in str(error)
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, {"kind": "test"})
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content)
        flip(path, place)
        with pytest.raises(DamagedError, match="is damaged"):
            read_tensors(path)


def test_damaged_lines_are_left_out_and_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    write_records(path, [{"k": 1}, {"k": 2}, {"k": 3}])
    lines = path.read_bytes().splitlines()
    changed = lines[1].replace(b'"k": 2', b'"k": 5')
    path.write_bytes(b"\n".join([lines[0], changed, b"{}", b"\xff\xfe", lines[2], lines[0][:9]]))
    assert read_records(path) == ([{"k": 1}, {"k": 3}], 4)
    assert read_records(tmp_path / "absent") == ([], 0)


def test_files_of_others_have_no_digest(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_tensors(tmp_path / "a.safetensors", needs_digest=False)[1] == {}
    assert read_json(tmp_path / "a.json", needs_digest=False) == {"a": 1}
    for read, name in ((read_tensors, "a.safetensors"), (read_json, "a.json")):
        with pytest.raises(DamagedError):
            read(tmp_path / name)


def test_temporary_files_of_the_dead_are_swept_and_no_others(tmp_path):
    ours = "from pathlib import Path; from recombine.core.files import replacing\nwith replacing(Path('a')) as t:"
    code = f"{ours}\n    t.write_text('half'); print(t.name, flush=True); import time; time.sleep(60)"
    writer = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    name = writer.stdout.readline().strip()
    with replacing(tmp_path / "b") as mine:
        write_atomically(tmp_path / "c", "whole")
        assert (tmp_path / name).exists() and mine.exists()
    elsewhere = tmp_path / "a.00000000-1-12345678.tmp"
    elsewhere.touch()
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    write_atomically(tmp_path / "c", "whole")
    assert not (tmp_path / name).exists() and elsewhere.exists()
    os.utime(elsewhere, (0, 0))
    write_atomically(tmp_path / "c", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]


def test_the_file_that_an_error_names_is_named():
    said = r"^cannot write /a/b: Read-only file system; name another folder"
    with pytest.raises(WriteError, match=said), writing(Path(), reading=True):
        raise OSError(errno.EROFS, "", "/a/b")


WRITERS = {
    "bytes": lambda path: write_atomically(path, b"x" * 9000),
    "tensors": lambda path: write_tensors(path, {"a": torch.ones(9000)}, {}),
    "records": lambda path: append_records(path, [{"k": "x" * 9000}]),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_disk_that_takes_no_more_is_one_sentence(tmp_path, kind):
    path = tmp_path / "deep" / "file"
    path.parent.mkdir()
    path.write_text("old")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(WriteError, match=r"^cannot write .*file: File too large \([\d,]+ MiB free in .*\); make"):
            WRITERS[kind](path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text().startswith("old") and list(path.parent.iterdir()) == [path]


def test_a_file_in_place_of_a_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"cannot write .*inner: (Not a directory|File exists)"):
        write_atomically(tmp_path / "file" / "inner", "x")


@pytest.mark.parametrize("name", ["file", "file/inner", "/proc/inner", "a" * 300, "link"])
def test_where_nothing_can_be_written_is_told_before(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=r"^cannot write .*; name another folder"):
        check_writable(tmp_path / name)
    check_writable(tmp_path / "new" / "inner")
    assert sorted(tmp_path.rglob("*")) == before


def test_where_no_lock_can_be_made_nobody_waits(tmp_path):
    (tmp_path / "file").touch()
    with exclusive(tmp_path / "file" / "inner.lock") as mine:
        assert mine
