"""The wings of the package: imports go one way, each face names what exists, types are checked."""

import ast
import dataclasses
import graphlib
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
from torch import nn

import kdnb
from kdnb import files, parameters

PACKAGE = files.ROOT / "kdnb"
MODULES = sorted(
    path.relative_to(files.ROOT).with_suffix("").as_posix().replace("/", ".")
    for path in PACKAGE.rglob("*.py")
    if path.stem != "__init__"
)
WINGS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def listed_in_readme() -> list[str]:
    """Wings and top modules in the order of the table in README.md, lowest first."""
    section = (
        (files.ROOT / "README.md").read_text().split("## Where things are")[1].split("\n## ")[0]
    )
    cells = re.findall(r"^\| ((?:`\w+/?`(?:, )?)+) \|", section, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"\w+", cell)]


def imported(path: Path) -> set[str]:
    """Modules of this package that a file imports, as dotted names; names of a face count as it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("kdnb.")}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import from the full name, not from a relative one"
            if node.module == "kdnb" or (node.module or "").startswith("kdnb."):
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                known = whole & {*MODULES, *(f"kdnb.{wing}" for wing in WINGS)}
                found |= known if len(known) == len(whole) else known | {node.module}
    return found - {"kdnb"}


def file_of(module: str) -> Path:
    path = files.ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def wing_of(module: str) -> str:
    return module.split(".")[1]


def test_readme_lists_every_wing_and_top_module_once():
    tops = {wing_of(module) for module in MODULES}
    assert len(WINGS) >= 10 and tops >= set(WINGS)
    assert sorted(listed_in_readme()) == sorted(tops)


def test_a_wing_imports_only_wings_above_it_in_the_table():
    order = {name: number for number, name in enumerate(listed_in_readme())}
    edges = 0
    for module in [*MODULES, *(f"kdnb.{wing}" for wing in WINGS)]:
        for used in imported(file_of(module)):
            here, there = wing_of(module), wing_of(used)
            edges += here != there
            assert order[there] <= order[here], f"{module} imports {used}, which is a later wing"
    assert edges > 50


def test_imports_have_no_cycles():
    """Faces count as modules, so a module that imports its own face is a cycle too."""
    nodes = [*MODULES, *(f"kdnb.{wing}" for wing in WINGS)]
    graph = {module: imported(file_of(module)) for module in nodes}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(nodes)


def test_no_private_name_is_used_in_another_module():
    benchmarks = sorted(f"benchmarks.{path.stem}" for path in files.ROOT.glob("benchmarks/*.py"))
    for module in [*MODULES, *benchmarks]:
        ours = {used.rpartition(".")[2] for used in imported(file_of(module))}
        for node in ast.walk(ast.parse(file_of(module).read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kdnb"):
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                assert not private, f"{module} imports {private} from {node.module}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                hidden = node.attr.startswith("_") and not node.attr.startswith("__")
                assert not (hidden and node.value.id in ours), (
                    f"{module} uses {node.value.id}.{node.attr}"
                )


@pytest.mark.parametrize("wing", WINGS)
def test_a_face_has_a_docstring_and_names_what_exists(wing):
    face = importlib.import_module(f"kdnb.{wing}")
    assert face.__doc__
    for name in getattr(face, "__all__", []):
        assert getattr(face, name) is not None and not name.startswith("_")


def annotated(module) -> list:
    """Functions defined in a module that promise types."""
    return [
        value
        for value in vars(module).values()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and value.__annotations__
    ]


def checks_itself(module) -> bool:
    """Whether a module defines networks, or declared parameters, which are checked on creation."""
    classes = [value for value in vars(module).values() if inspect.isclass(value)]
    own = [value for value in classes if value.__module__ == module.__name__]
    return any(
        issubclass(value, nn.Module)
        or (dataclasses.is_dataclass(value) and parameters.declared(value))
        for value in own
    )


def test_types_are_checked_everywhere_but_in_networks_and_declared_parameters():
    """Compilers and exporters read the code of networks, so beartype skips their modules."""
    skipped = set(kdnb.TYPE_CHECKS.claw_skip_package_names)
    assert skipped <= set(MODULES), "a module on the skip list was moved or renamed"
    checked = 0
    for name in MODULES:
        module = importlib.import_module(name)
        if name in skipped:
            assert checks_itself(module), f"{name} needs no exception: remove it from the list"
            continue
        for function in annotated(module):
            assert hasattr(function, "__beartype_wrapper"), f"{name}.{function.__name__}"
            checked += 1
    assert checked > 300
    with pytest.raises(TypeError, match="text"):
        files.simplify(3)


def test_walking_the_package_finds_every_module():
    found = {module.name for module in pkgutil.walk_packages(kdnb.__path__, "kdnb.")}
    assert found == {*MODULES, *(f"kdnb.{wing}" for wing in WINGS)}
