"""Kernels for notebooks that run one after another: each starts as a copy of one process that has
imported the libraries.

Of a quick notebook's time, importing torch, scikit-learn and this package takes a large part. On
Linux, :func:`own_kernel` imports them once and forks (:mod:`multiprocessing`, *forkserver*). Each
copy is a process of its own, with the environment and the folder that it would have been started
in. Elsewhere, where forking after such imports is unsafe, a kernel starts as any other does.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import matplotlib
from ipykernel.kernelspec import write_kernel_spec
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

NAME = "kdnb"  # of the kernel that runs in this interpreter
INLINE = "module://matplotlib_inline.backend_inline"  # figures go into the notebook
# what notebooks import
IMPORTED = ["ipykernel.kernelapp", "kdnb.report", "kdnb.segmentation", "kdnb.widgets"]


@contextmanager
def own_kernel() -> Iterator[str]:
    """Yield the name of a kernel in this very interpreter, whatever other kernels are installed."""
    KernelProvisionerFactory.instance().provisioners[NAME] = EntryPoint(
        NAME, f"{__name__}:{_Copies.__name__}", KernelProvisionerFactory.GROUP_NAME
    )
    chosen = {"provisioner_name": NAME} if sys.platform == "linux" else {}
    with tempfile.TemporaryDirectory() as folder:
        write_kernel_spec(
            Path(folder, "kernels", NAME), {"metadata": {"kernel_provisioner": chosen}}
        )
        before = os.environ.get("JUPYTER_PATH")
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, (folder, before)))
        try:
            yield NAME
        finally:
            if before is None:
                del os.environ["JUPYTER_PATH"]
            else:
                os.environ["JUPYTER_PATH"] = before


class _Copies(LocalProvisioner):
    """Starts a kernel as a copy of the process that has imported :data:`IMPORTED`."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:
        """Fork; ``cmd`` is the command line of an ordinary kernel, of which the options count.

        Returns the ports and the key of the connection.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)
        options = cmd[cmd.index("ipykernel_launcher") + 1 :]
        self.cwd = kwargs.get("cwd") or Path.cwd()
        copy = context.Process(target=_serve, args=(options, dict(kwargs["env"]), str(self.cwd)))
        copy.start()
        self.process, self.pid = _Running(copy), copy.pid
        return self.connection_info


class _Running:
    """A :class:`multiprocessing.Process` with what Jupyter asks of a :class:`subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, process: multiprocessing.process.BaseProcess):
        self.pid = process.pid
        self.process = process
        self.kill, self.terminate = process.kill, process.terminate

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _serve(options: list[str], environment: dict[str, str], folder: str) -> None:
    """Be a kernel until it is shut down."""
    from ipykernel.kernelapp import IPKernelApp

    threading.Thread(
        target=_end_with, args=(multiprocessing.parent_process(),), daemon=True
    ).start()
    os.setsid()  # an interrupt of the terminal is for the series, as with any kernel
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # read when matplotlib was imported, and there was no notebook then
    matplotlib.rcParams["backend"] = environment.get("MPLBACKEND") or INLINE
    sys.path.insert(0, "")  # a notebook finds modules beside it
    # 1: it has a parent, which is watched here (ipykernel would watch the server of copies)
    IPKernelApp.launch_instance([*options, "--IPKernelApp.parent_handle=1"])


def _end_with(series: multiprocessing.process.BaseProcess) -> None:
    """No kernel outlives the process that started it."""
    series.join()
    os._exit(1)
