"""examples/shapes: a project with its own data set, network, method and experiment, run as its README says."""

from functools import partial
from pathlib import Path
from pkgutil import resolve_name

import pytest

from recombine.cli.entries import ENTRIES
from recombine.cli.overrides import compose_all
from recombine.core.files import CONFIG_DIR, use_config_dirs
from recombine.core.results import read_rows
from recombine.run.config import validate
from tests import forked

EXAMPLE = Path(__file__).parents[2] / "examples" / "shapes"
QUICK = ["loader=torch", "logger=none", "device=cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An empty folder, and a function that runs `recombine` in it with the example's package and configs."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "conf").symlink_to(EXAMPLE / "conf")
    return folder, partial(forked.run, cwd=folder, path=[EXAMPLE / "src"])


def test_own_data_network_method_and_experiment(run):
    folder, run = run
    trained = run("pretrain", "--config-dir", "conf", "dataset=shapes", "model=shape_net", "-m", "seed=0,1", *QUICK)
    assert trained.returncode == 0, trained.stderr
    moved = run("transfer", "hydra.searchpath=[file://conf]", "experiment=transfer/shapes", *QUICK)
    assert moved.returncode == 0, moved.stderr
    rows = {row.entry: row for row in read_rows(folder / "outputs")}
    assert rows["pretrain"].metrics["accuracy"] > 80 and rows["pretrain"].cell["dataset"] == "shapes"
    assert rows["transfer"].cell["method"] == "mean_squared_error"
    assert "--config-dir conf" in rows["pretrain"].provenance["command"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["transfer", "experiment=transfer/shape"], "there is no experiment 'transfer/shape'; did you mean"),
        (["transfer", "method=mean_squared_error", "method.wieght=2"], "did you mean 'weight'?"),
        (["pretrain", "dataset=shapes", "+dataset.reader.imges=3"], "did you mean 'images'?"),
        (["pretrain", "model=shape_net", "+model.widht=8"], "did you mean 'width'"),
        (["pretrain", "model=shape_net", "model._target_=os.system"], "os.system is not a network"),
        (["pretrain", "dataset=shapes", "dataset.reader._target_=os.remove"], "os.remove is not a reader of images"),
        (["pretrain", "method=mean_squared_error"], "MeanSquaredError needs teachers, which nothing gives it here"),
    ],
)
def test_mistakes_in_own_parts_are_told_like_ours(monkeypatch, tmp_path, words, told):
    monkeypatch.syspath_prepend(str(EXAMPLE / "src"))
    monkeypatch.chdir(tmp_path)
    entry = ENTRIES[words[0]]
    found = compose_all(str(CONFIG_DIR), entry.config, [f"hydra.searchpath=[file://{EXAMPLE / 'conf'}]", *words[1:]])
    use_config_dirs(found.folders)
    problems = [*found.problems, *validate(found.cfg, resolve_name(entry.settings))]
    use_config_dirs([])
    assert any(told in problem for problem in problems), problems
