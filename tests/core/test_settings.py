"""How mistakes in settings are told: all of them, each in one sentence with an override that mends it."""

import re
from pkgutil import resolve_name
from typing import Annotated, Literal

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from pydantic import Field

from recombine.cli.entries import ENTRIES
from recombine.core.builds import Builds, Node
from recombine.core.errors import ConfigError
from recombine.core.settings import SCHEMAS, Settings, find_problems

Part = Annotated[float, Field(gt=0, le=1)]


class Inner(Settings):
    rate: Part = 0.5
    """A rate."""
    mode: Literal["raw", "jpeg"] = "raw"
    """A mode."""

    def check(self, path):
        return [f"{path}.rate=1 needs {path}.mode=jpeg"] if self.rate == 1 and self.mode == "raw" else []


class Outer(Settings):
    fraction: Part = 1.0
    """A part."""
    count: Annotated[int, Field(ge=1)] | None = None
    """A number."""
    blocks: int | Literal["all"] = "all"
    """Some."""
    sizes: Annotated[list[int], Field(min_length=2, max_length=2)] = [2, 2]  # noqa: RUF012
    """A pair."""
    flag: bool = True
    """A switch."""
    inner: Inner
    """A node."""
    optimizer: (
        Annotated[Node, Builds("an optimizer", "optimizer=sgd", base="torch.optim.Optimizer", late=("params",))] | None
    ) = None
    """What is built."""

    def check(self, path):
        return ["flag=true needs fraction=1"] if self.flag and self.fraction < 1 else []


WRONG = {
    "fraction": (2, "fraction=2: a number above 0 and at most 1 is needed, such as fraction=1"),
    "count": (0, "count=0: a whole number of at least 1, or null is needed, such as count=1"),
    "blocks": (1.5, "blocks=1.5: a whole number or all is needed, such as blocks=all"),
    "sizes": ([1], "sizes=[1]: a list of 2 whole numbers is needed, such as sizes=[2,2]"),
    "flag": (1, "flag=1: true or false is needed, such as flag=true"),
    "fractoin": (1, "unknown setting fractoin: did you mean 'fraction'?"),
    "inner": ({"mode": "png"}, "inner.mode=png: one of raw, jpeg is needed, such as inner.mode=raw"),
    "optimizer": ({"_target_": "torch.optim.SDG"}, "optimizer._target_=torch.optim.SDG: torch.optim has no SDG"),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_mistake_is_one_sentence(name):
    value, told = WRONG[name]
    (problem,) = find_problems(Outer, {"inner": {}, name: value})
    assert problem.startswith(told)


def test_all_mistakes_are_told_together_with_the_rules_between_what_is_right():
    node = {"inner": {"rate": 1, "mode": "raw", "speed": 3}, "fraction": 0.5, "count": 0}
    problems = find_problems(Outer, node, "x")
    assert [text.partition(":")[0] for text in problems] == [
        "x.count=0",
        "unknown setting x.inner.speed",
        "x.inner.rate=1 needs x.inner.mode=jpeg",
        "flag=true needs fraction=1",
    ]
    with pytest.raises(ConfigError) as error:
        Outer.of(node, "x")
    assert error.value.problems == problems


@pytest.mark.parametrize(
    ("node", "told"),
    [
        ({"_target_": "os.remove"}, "optimizer._target_=os.remove is not an optimizer; optimizer=sgd is one"),
        ({"_target_": "torch.nn.ReLU"}, "is not an optimizer"),
        ({"_target_": "torch.optim.Rprop", "lrr": 1}, "unknown setting optimizer.lrr: torch.optim.Rprop does not"),
        ({"_target_": "nowhere.Class"}, "No module named 'nowhere'"),
    ],
)
def test_what_is_built_must_be_of_its_kind(node, told):
    (problem,) = find_problems(Outer, {"inner": {}, "optimizer": node})
    assert told in problem


def test_good_settings_are_typed():
    made = Outer.of({"inner": {"rate": 1, "mode": "jpeg"}, "count": 3})
    assert made.inner.rate == 1 and made.count == 3 and find_problems(Outer, {"inner": {}}) == []


PARSER = OverridesParser.create()
ENTRY_SETTINGS = [resolve_name(entry.settings) for entry in ENTRIES.values()]


@pytest.mark.parametrize("schema", [*ENTRY_SETTINGS, *SCHEMAS.values()], ids=lambda schema: schema.__name__)
def test_a_value_that_a_message_gives_as_an_example_is_right(schema):
    for name in schema.model_fields:
        told = [text for text in find_problems(schema, {name: [[None]]}, rules=False) if text.startswith(f"{name}=")]
        (text,) = told or [""]  # some fields take anything
        given = text.partition(f" is needed, such as {name}=")[2]
        if "settings of its own" in text:
            assert f"{name}." in text
        elif given and not re.fullmatch(r"\w+", given):  # a choice of a group is one word
            wrong = find_problems(schema, {name: PARSER.parse_override(f"x={given}").value()}, rules=False)
            assert not [problem for problem in wrong if problem.startswith(f"{name}=")], text
