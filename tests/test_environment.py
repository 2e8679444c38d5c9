"""One set of dependencies: pyproject names them, constraints pin them, environment.yml repeats neither."""

import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from press import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}
EXTRAS = PROJECT["optional-dependencies"]
NAMED = [Requirement(line) for line in sum(EXTRAS.values(), PROJECT["dependencies"])]


@pytest.mark.parametrize("requirement", NAMED, ids=str)
def test_every_dependency_is_pinned_within_its_bounds(requirement: Requirement) -> None:
    pin = PINS[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(Version(pin)), f"{requirement} is pinned to {pin}"


def test_torch_is_pinned_without_a_build_tag() -> None:
    assert PINS["torch"] == "2.13.0"
    assert not any("+" in version for version in PINS.values())


def test_conda_takes_the_same_packages() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, by_pip = environment["dependencies"]
    assert python.startswith("python" + PROJECT["requires-python"])
    assert pip == "pip"
    assert by_pip == {"pip": ["-c constraints.txt", "-e .[book]"]}


def test_the_house_is_in_order() -> None:
    """`bridges` knows nothing of the book, and inside it imports run one way."""
    below = {
        "tasks": set(),
        "connectors": set(),
        "instruments": set(),
        "hosts": {"connectors"},
        "training": {"tasks"},
        "benches": {"hosts", "connectors", "tasks", "training", "instruments"},
        "jobs": {"hosts", "connectors", "tasks", "training", "instruments", "benches"},
        "planted": {"hosts", "connectors", "tasks", "training", "instruments", "benches"},
    }
    for path in (ROOT / "lib" / "bridges").rglob("*.py"):
        text = path.read_text()
        assert not re.search(r"^(from|import) press", text, re.MULTILINE), path
        folder = path.parent.name
        if folder in below:
            used = set(re.findall(r"^from bridges\.(\w+)", text, re.MULTILINE)) - {folder}
            assert used <= below[folder], f"{path.name} imports {used - below[folder]}"
