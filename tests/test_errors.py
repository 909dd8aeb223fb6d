"""Every kind of error that a reader can meet has a code, and the code leads to the way out."""

import ast
import importlib
import pkgutil
import re
import traceback

import pytest

import kdnb
from kdnb import checks, errors, files
from kdnb.images.splits import SplitError

CODES = {  # stable: a code is never given to another kind, and a kind that is gone keeps its code
    "KD101": "DatasetMissing",
    "KD102": "SplitError",
    "KD103": "ReadingError",
    "KD104": "BadVerdicts",
    "KD201": "UnknownName",
    "KD202": "BadParameter",
    "KD301": "BadSize",
    "KD302": "PretrainedMissing",
    "KD303": "FixedSize",
    "KD304": "CheckpointMismatch",
    "KD305": "Unsuitable",
    "KD306": "Damaged",
    "KD401": "Diverged",
    "KD402": "Mismatch",
    "KD501": "NoMap",
    "KD502": "BadImage",
    "KD601": "NotHere",
    "KD602": "NotOurs",
    "KD603": "NoSuchStudent",
    "KD604": "NotOpened",
    "KD605": "NotReleased",
    "KD701": "MissingExtra",
    "KD702": "DiskFull",
    "KD801": "BadFeature",
    "KD802": "TooFewGroups",
    "KD803": "NoFeatures",
    "KD804": "NotPrinted",
    "KD805": "NothingToRelease",
    "KD806": "NoReports",
}
# modules below which a notebook's reader is: here a built-in error tells a programmer of a wrong
# argument of a function, or is caught and said otherwise
FOR_PROGRAMMERS = {
    "checks", "data", "distillation", "evaluation", "plots", "models", "explanations", "deployment",
    "classical", "training.schedule", "images.downloads", "images.scan", "images.splits",
    "images.reading", "report.site",
}  # fmt: skip
BUILT_IN = {"ValueError", "RuntimeError", "TypeError", "KeyError", "FileNotFoundError", "Exception"}


def classes() -> list[type]:
    """Every subclass of ``UserError`` in the package."""
    for module in pkgutil.walk_packages(kdnb.__path__, "kdnb."):
        importlib.import_module(module.name)
    found, waiting = [], [errors.UserError]
    while waiting:
        below = [c for c in waiting.pop().__subclasses__() if c.__module__.startswith("kdnb.")]
        found += below
        waiting += below
    return found


def test_every_error_for_readers_has_its_own_code_cause_and_way_out():
    stated = {each.__name__: each for each in classes()}
    assert {kind.code: kind.name for kind in errors.kinds()} == CODES
    assert {each.code: name for name, each in stated.items()} == CODES, "state code and way_out"
    for kind in errors.kinds():
        assert re.fullmatch(r"KD\d\d\d", kind.code) and int(kind.code[2]) in errors.AREAS
        assert kind.cause.endswith(".") and len(kind.way_out.split()) >= 5, kind.code
        assert kind.way_out == stated[kind.name].way_out and kind.messages, kind.code
        assert not any("\n" in message for message in kind.messages)


def test_studies_parameters_and_tables_of_labels_raise_only_errors_with_a_code():
    """Where a reader's choices are checked, no built-in error is raised."""
    seen = 0
    for path in (files.ROOT / "kdnb").rglob("*.py"):
        module = ".".join(path.relative_to(files.ROOT / "kdnb").with_suffix("").parts)
        raised = [
            ast.unparse(node.exc.func)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        ]
        seen += len(raised)
        parts = module.split(".")
        if {module, parts[0]} & FOR_PROGRAMMERS:
            continue
        assert not BUILT_IN & set(raised), f"{module}: raise an error with a code"
    assert seen > 150


@pytest.mark.parametrize("error", [SplitError, checks.Diverged, files.UnknownName, files.DiskFull])
def test_the_code_stands_under_the_message_in_notebooks_and_in_scripts(error):
    raised = error("a sentence")
    assert str(raised) == "a sentence"
    link = f"{error.code}: cause and way out by python -m kdnb.errors {error.code}"
    assert "".join(traceback.format_exception_only(raised)).splitlines()[1].startswith(link)
    shown = raised._render_traceback_()
    assert shown[0] == f"{error.__name__}: a sentence" and shown[2].startswith(link)
    assert errors.links(shown) == [raised.link]  # what python -m kdnb.run prints below the message


def test_a_code_is_explained_on_the_command_line(capsys):
    assert errors.main(["kd701"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("KD701 MissingExtra\n") and "Way out: run the line" in text
    assert "not installed: …, for …." in " ".join(text.split())
    assert errors.main(["KD999"]) == 1
    assert "no such code: KD999. Known: KD101" in capsys.readouterr().err


def test_the_page_of_the_site_holds_every_code_with_its_messages():
    page = errors.page()
    for kind in errors.kinds():
        assert f"({kind.code.lower()})=\n### {kind.code} · {kind.name}\n" in page
        assert all(f"- `{message}`" in page.replace("'", "`") or "'" in message or "`" in message
                   for message in kind.messages)  # fmt: skip
    assert page.count("**Way out.**") == len(CODES)
    assert not re.search(r"^#+ .*\?$", page, re.MULTILINE)


def test_a_class_without_a_code_is_an_error_as_before():
    class Plain(errors.UserError):
        pass

    assert Plain("x")._render_traceback_() == [
        "Plain: x",
        "",
        "For the whole trace: %env KDNB_TRACEBACK=1, then %tb",
    ]
    assert not hasattr(Plain("x"), "__notes__")
