"""What the jobs of a command have to download before they start."""

import torch
from omegaconf import OmegaConf
from torchvision.models import resnet18

from recombine.cli.downloads import missing_weights
from recombine.cli.main import main


def test_each_library_network_of_all_jobs_is_counted_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    node = {"name": "torchvision:resnet18", "architecture": None, "weights": "pretrained"}
    here = OmegaConf.create({"weights_root": str(tmp_path), "student": node, "teachers": ["torchvision:alexnet"]})
    random = OmegaConf.create({"weights_root": str(tmp_path), "student": {**node, "weights": None}})
    state = resnet18(weights=None).state_dict()
    missing = missing_weights([here, here, random])
    assert set(missing) == {"torchvision:alexnet", "torchvision:resnet18"}
    assert missing["torchvision:resnet18"] == 4 * sum(value.numel() for value in state.values())
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    assert list(missing_weights([here])) == ["torchvision:alexnet"]


def test_networks_that_are_here_need_no_download(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["main_pretrain.py", "-m", "model=cnn,lenet5", "dataset=digits"]
    for flag, told in (("--dry-run", "2 jobs: 0 done, 2 to run"), ("--download", "all networks are on this machine")):
        monkeypatch.setattr("sys.argv", [*words, flag])
        main("pretrain")
        assert told in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
