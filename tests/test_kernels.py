"""Kernels that start as copies of one process: each is a process of its own, as any kernel is."""

import os
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

from kdnb import kernels

linux = pytest.mark.skipif(sys.platform != "linux", reason="kernels are copies on Linux alone")


def executed(*sources, folder, **options):
    """What each of a notebook's cells prints."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    resources = {"metadata": {"path": str(folder)}}
    with kernels.own_kernel() as name:
        NotebookClient(notebook, kernel_name=name, resources=resources, **options).execute()
    return ["".join(o.get("text", "") for o in c.outputs).strip() for c in notebook.cells]


@linux
def test_a_copy_has_its_environment_its_folder_and_the_libraries(tmp_path, monkeypatch):
    (tmp_path / "beside.py").write_text("value = 7\n")
    monkeypatch.setenv("KDNB_PROFILE", "smoke")
    told = "import os, sys; print(os.environ['KDNB_PROFILE'], os.getcwd(), 'torch' in sys.modules)"
    figure = "import matplotlib.pyplot as plt; plt.plot([1, 2]); print(plt.get_backend())"
    sources = (told, "import beside; print(beside.value)", figure)
    first = executed(*sources, "import os; print(os.getpid())", folder=tmp_path)
    assert first[:2] == [f"smoke {tmp_path} True", "7"] and first[2] == kernels.INLINE
    monkeypatch.delenv("KDNB_PROFILE")
    after = (
        "import os, sys; print(os.getpid(), 'beside' in sys.modules, 'KDNB_PROFILE' in os.environ)"
    )
    pid, *rest = executed(after, folder=tmp_path)[0].split()
    assert pid != first[3] and rest == ["False", "False"]


@linux
def test_a_copy_is_interrupted_and_its_death_is_noticed(tmp_path):
    wait = "import time\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('stopped')"
    begun = time.monotonic()
    timed = {"timeout": 2, "interrupt_on_timeout": True}
    assert executed(wait, folder=tmp_path, **timed)[0].startswith("stopped")
    assert time.monotonic() - begun < 50
    with pytest.raises(DeadKernelError):
        executed("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", folder=tmp_path)


@linux
def test_no_copy_outlives_the_series(tmp_path):
    """The runner is killed: its kernel ends too."""
    noted = tmp_path / "pid"
    script = tmp_path / "series.py"
    cell = f"import os, pathlib, time; pathlib.Path({str(noted)!r}).write_text(str(os.getpid())); "
    script.write_text(
        "import nbformat\nfrom nbclient import NotebookClient\nfrom kdnb import kernels\n"
        "kernels.IMPORTED = ['ipykernel.kernelapp']\nif __name__ == '__main__':\n"
        "    with kernels.own_kernel() as name:\n"
        f"        cell = nbformat.v4.new_code_cell({cell + 'time.sleep(300)'!r})\n"
        "        notebook = nbformat.v4.new_notebook(cells=[cell])\n"
        "        NotebookClient(notebook, kernel_name=name).execute()\n"
    )
    series = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    pid = int(_later(lambda: noted.exists() and noted.read_text()))
    assert _running(pid)
    os.kill(series.pid, signal.SIGKILL)
    series.wait()
    assert _later(lambda: not _running(pid))


def _running(pid):
    """Whether a process does anything; one that has ended may stay listed until it is reaped."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _later(asked, seconds=60):
    """The first answer that is true."""
    for _ in range(10 * seconds):
        if answer := asked():
            return answer
        time.sleep(0.1)
    raise AssertionError("not within a minute")


@pytest.mark.parametrize(("platform", "copied"), [("linux", True), ("darwin", False)])
def test_only_linux_forks(monkeypatch, platform, copied):
    monkeypatch.setattr(kernels.sys, "platform", platform)
    before = os.environ.get("JUPYTER_PATH")
    with kernels.own_kernel() as name:
        spec = KernelSpecManager().get_kernel_spec(name)
        assert spec.argv[0] == sys.executable
        assert spec.metadata["kernel_provisioner"].get("provisioner_name") == (
            name if copied else None
        )
    assert os.environ.get("JUPYTER_PATH") == before
