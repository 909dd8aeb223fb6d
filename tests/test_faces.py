"""Rules for the whole package, checked mechanically: faces, docstrings, length, private names."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kdnb
from kdnb import files

PACKAGE = Path(kdnb.__file__).parent
WINGS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
MODULES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 40
ARRAYS = re.compile(r"\b(Tensor|ndarray)\b")
SHAPE = re.compile(r"``\([^`]+,[^`]*\)``|\(\w+(, ?\w+)+\)")
UNFORMATTED = {"kdnb/models/ofa.py", "kdnb/images/catalogue.py", "kdnb/report/claims.py"}  # tables


def public(wing: str) -> dict[str, object]:
    """Functions and classes that a wing's face offers, by name."""
    module = importlib.import_module(f"kdnb.{wing}")
    found = {name: getattr(module, name) for name in getattr(module, "__all__", [])}
    return {
        f"{wing}.{name}": value
        for name, value in found.items()
        if inspect.isfunction(value) or inspect.isclass(value)
    }


FACES = {name: value for wing in WINGS for name, value in public(wing).items()}
FUNCTIONS = {name: value for name, value in FACES.items() if inspect.isfunction(value)}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE.parent))


@pytest.mark.parametrize("wing", WINGS)
def test_a_face_lists_what_it_offers_and_says_what_it_is_for(wing):
    module = importlib.import_module(f"kdnb.{wing}")
    assert module.__doc__ and getattr(module, "__all__", None), "a face has a docstring and __all__"
    assert len(set(module.__all__)) == len(module.__all__)
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert missing == []
    for name in {path.stem for path in (PACKAGE / wing).glob("*.py")} & set(module.__all__):
        value, hidden = getattr(module, name), f"kdnb.{wing}.{name}"
        # a module may be named after the function that it is for, and after no other
        assert inspect.ismodule(value) or value.__module__ == hidden, f"{name} hides {hidden}"


@pytest.mark.parametrize("name", FACES)
def test_a_public_name_has_a_docstring(name):
    text = inspect.getdoc(FACES[name])
    assert text and not text.startswith(FACES[name].__name__ + "("), "a docstring of its own"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_docstring_gives_the_shape_of_every_array(name):
    function = FUNCTIONS[name]
    hints = {k: str(v) for k, v in inspect.get_annotations(function).items()}
    arrays = [parameter for parameter, hint in hints.items() if ARRAYS.search(hint)]
    text = inspect.getdoc(function) or ""
    assert not arrays or SHAPE.search(text), f"no shape of {', '.join(arrays)}"


def raised(function: ast.FunctionDef) -> bool:
    """Whether a function itself raises, outside of functions that it defines."""
    inner = [n for n in ast.walk(function) if isinstance(n, ast.FunctionDef) and n is not function]
    nested = {id(node) for one in inner for node in ast.walk(one)}
    return any(
        isinstance(node, ast.Raise) and node.exc is not None and id(node) not in nested
        for node in ast.walk(function)
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_docstring_names_the_errors_that_are_raised(name):
    function = inspect.unwrap(FUNCTIONS[name])
    source = tree(Path(inspect.getfile(function)))
    found = [n for n in source.body if getattr(n, "name", "") == function.__name__]
    if found and isinstance(found[0], ast.FunctionDef) and raised(found[0]):
        assert re.search(r"\b[Rr]aises\b", inspect.getdoc(function) or "")


def functions(path: Path) -> list[ast.FunctionDef]:
    return [
        n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def length(function: ast.FunctionDef) -> int:
    """Lines of a function without its decorators, signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_are_short_or_say_why_not(path):
    """A longer one holds a comment ``# long: <reason>``."""
    lines = path.read_text().splitlines()
    long = [
        f"{function.name}: {length(function)} lines"
        for function in functions(path)
        if length(function) > LONGEST
        and not any(
            re.search(r"# long: \w+", line)
            for line in lines[function.lineno - 1 : function.end_lineno]
        )
    ]
    assert long == []


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def imported(source: ast.Module) -> set[str]:
    """Names that stand for modules of this package, as far as imports show."""
    names = set()
    for node in ast.walk(source):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kdnb":
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {
                (alias.asname or alias.name).split(".")[0]
                for alias in node.names
                if alias.name.split(".")[0] == "kdnb"
            }
    return names


def borrowed(path: Path) -> list[str]:
    """Private names of other modules of this package that a file uses."""
    source = tree(path)
    modules = imported(source)
    found = [name for name in modules if private(name)]
    for node in ast.walk(source):
        if isinstance(node, ast.Attribute) and private(node.attr):
            owner = node.value
            while isinstance(owner, ast.Attribute):
                owner = owner.value
            if isinstance(owner, ast.Name) and owner.id in modules:
                found.append(f"{ast.unparse(node)}, line {node.lineno}")
    return found


@pytest.mark.parametrize(
    "path", [*MODULES, *sorted((PACKAGE.parent / "benchmarks").glob("*.py"))], ids=name_of
)
def test_no_module_uses_a_private_name_of_another(path):
    assert borrowed(path) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_tables_are_kept_from_the_formatter(path):
    assert name_of(path) in UNFORMATTED or "fmt: skip" not in path.read_text()


def test_lines_are_at_most_100_characters_long():
    command = [sys.executable, "-m", "ruff", "check", "--select", "E501", "--output-format"]
    paths = ("kdnb", "tests", "benchmarks", "notebooks")
    run = subprocess.run(
        [*command, "concise", *paths], cwd=files.ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout


def test_the_rules_find_what_breaks_them(tmp_path):
    path = tmp_path / "bad.py"
    body = "\n".join(f"    x = {n}" for n in range(LONGEST + 1))
    path.write_text(
        f"from kdnb import files\nfiles._secret\n\n\ndef work():\n{body}\n    raise X\n"
    )
    (function,) = functions(path)
    assert borrowed(path) == ["files._secret, line 2"] and raised(function)
    with pytest.raises(AssertionError):
        test_functions_are_short_or_say_why_not(path)
