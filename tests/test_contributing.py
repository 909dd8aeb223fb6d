"""What CONTRIBUTING.md says is done as it is written there."""

import os
import re
import shutil
import subprocess
import sys

from conftest import lend

from kdnb import files


def section(title: str) -> str:
    text = (files.ROOT / "CONTRIBUTING.md").read_text()
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def test_add_a_method_is_followed_literally(tmp_path, shared_phantoms):
    """The file that the text shows is put into a copy of the package and run by the command that
    the text gives: short option, resume and registry included."""
    text = section("Add a method")
    steps = re.findall(r"^(\d+)\. ", text, re.MULTILINE)
    assert steps == [str(number) for number in range(1, 11)]
    (path,) = re.findall(r"Create `(kdnb/distillation/\w+\.py)`", text)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (command,) = re.findall(r"Run it:\s+`python (-m kdnb\.run .*?)`", text)
    for name in ("kdnb", "notebooks"):
        # compiled modules come along; those that are being written have a longer suffix
        ignored = shutil.ignore_patterns("*.pyc.*", ".ipynb_checkpoints")
        shutil.copytree(files.ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(files.ROOT / "pyproject.toml", tmp_path)
    assert not (tmp_path / path).exists()
    lines = [line.removeprefix("   ") for line in code.splitlines()]
    files.write_text(tmp_path / path, "\n".join(lines).rstrip() + "\n")
    lend(shared_phantoms, tmp_path / "cache")
    folders = {f"KDNB_{kind}": str(tmp_path / kind.lower()) for kind in ("CACHE", "OUTPUTS")}
    done = subprocess.run(
        [sys.executable, *command.split()],
        cwd=tmp_path,
        env=os.environ | folders | {"PYTHONPATH": str(tmp_path), "KDNB_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=1800,  # a cap for a machine that does much else
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (stored,) = (tmp_path / "cache").rglob("distill-*logit_matching-beta_2.json")
    result = files.read_json(stored)
    assert result["config"]["options"] == {"beta": 2.0}
    runs = result["results"]["training"]
    (key,) = [run["key"] for run in runs.values() if run["key"]["teachers"]]
    assert key["objective"]["options"] == {"beta": 2.0}
    check = [sys.executable, "-m", "ruff", "check", "--quiet", str(tmp_path / path)]
    assert subprocess.run(check, cwd=files.ROOT).returncode == 0
