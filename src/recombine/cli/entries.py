"""The experiments that can be started: what each is called, its procedure and its config."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from recombine.core.files import CONFIG_DIR

__all__ = ["ENTRIES", "Entry", "find_entry", "owners_of", "register_papers"]

PAPERS = (
    *("recombine.flips.plots", "recombine.pretrain.plots", "recombine.transfer.plots", "recombine.pnc.plots"),
    *("recombine.pnc.claims", "recombine.patch.plots", "recombine.stitch.plots", "recombine.stitch.derived"),
    *("recombine.transfer.attribution", "recombine.pnc.verdicts", "recombine.pnc.kept_plots", "recombine.pnc.choices"),
)
"""Modules whose import adds a paper's plots and derived rows to the report."""


@dataclass(frozen=True)
class Entry:
    """One experiment: `python main_<name>.py` in a clone, `recombine <name>` everywhere."""

    name: str
    recipe: str
    """Module of the procedure: `run(cfg, run)`, see `recombine.run.launch`."""
    config: str
    """Primary config, below the config folder."""
    settings: str = "recombine.run.settings:EntrySettings"
    """module:class that declares the config; imports no torch, as a wrong command is answered before it is."""
    groups: str = ""
    """Folder, below the config folder, of the groups (method, search) that this entry alone sees."""
    about: str = ""
    """One line for `recombine --help`."""
    metric: str = ""
    """What the report page says first of its runs."""
    files: str = ""
    """module:function of the files outside its folder that make a finished run another one, where these are not known
    beforehand; imports no torch."""


ENTRIES = {
    entry.name: entry
    for entry in (
        Entry(
            "flips",
            "recombine.flips.recipe",
            "prediction_flips/flips",
            "recombine.flips.settings:FlipsSettings",
            about="what one trained network knows that another does not",
            metric="rho_pos",
            files="recombine.flips.candidates:list_checkpoints",
        ),
        Entry(
            "pretrain",
            "recombine.pretrain.recipe",
            "pretrain/pretrain",
            "recombine.pretrain.settings:PretrainSettings",
            "pretrain",
            about="train any network on any dataset",
            metric="accuracy",
        ),
        Entry(
            "transfer",
            "recombine.transfer.recipe",
            "transfer/transfer",
            "recombine.transfer.settings:TransferSettings",
            "transfer",
            about="move what a teacher knows into a student that keeps what it knew",
            metric="transfer_delta",
        ),
        Entry(
            "multi_teacher",
            "recombine.transfer.multi_teacher",
            "multi_teacher/multi_teacher",
            "recombine.transfer.settings:MultiTeacherSettings",
            "transfer",
            about="the same from several teachers",
            metric="transfer_delta",
        ),
        Entry(
            "pnc",
            "recombine.pnc.recipe",
            "pnc/pnc",
            "recombine.pnc.settings:PncSettings",
            "pnc",
            about="copy what a network knows of some classes into another one",
            metric="accuracy_average",
        ),
        Entry(
            "stitch",
            "recombine.stitch.recipe",
            "stitch/stitch",
            "recombine.stitch.settings:StitchSettings",
            "stitch",
            about="join two networks and search for offspring that beat both",
            metric="test_dominate_both_parents",
        ),
        Entry(
            "patch",
            "recombine.patch.recipe",
            "patch/patch",
            "recombine.patch.settings:PatchSettings",
            "patch",
            about="new tasks for a frozen network through a small removable patch",
            metric="accuracy_patched",
        ),
    )
}
"""By name."""


def find_entry(config_name: str) -> Entry | None:
    """The entry of a primary config, such as `transfer/transfer`; None for a config of somebody else's."""
    return next((entry for entry in ENTRIES.values() if entry.config == config_name.removesuffix(".yaml")), None)


def owners_of(group: str, option: str) -> str:
    """` here, it belongs to ...` for an option of a group that other entries have; else nothing."""
    there = [
        entry.name
        for entry in ENTRIES.values()
        if entry.groups and (CONFIG_DIR / entry.groups / group / f"{option}.yaml").is_file()
    ]
    return f" here, it belongs to {' and '.join(there)}" if there else ""


def register_papers() -> None:
    """Make the plots and derived rows of all papers known to the report."""
    for module in PAPERS:
        import_module(module)
