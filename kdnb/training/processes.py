"""One training on one or several processes: who they are, what they share, whom they wait for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor

from kdnb import device, files
from kdnb.distillation.base import Seen


def accelerator(
    elastic: bool = False, tracker: str | None = None, logs: Path | None = None
) -> Accelerator:
    """Device, precision and processes of this launch.

    ``elastic`` for a supernet: a step leaves out the weights that its four subnets do not have.
    ``tracker`` and the folder of its ``logs`` for one that logs (:mod:`kdnb.training.tracking`).
    """
    unused = DistributedDataParallelKwargs(find_unused_parameters=elastic)
    return Accelerator(
        mixed_precision=device.precision(),
        kwargs_handlers=[unused],
        log_with=tracker,
        project_dir=logs,
    )


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the lock of a run: two notebooks that want the same teacher train it once.

    The processes of one launch share the lock of their main process.
    """
    launch = accelerator()
    with files.lock(folder) if launch.is_main_process else nullcontext():
        launch.wait_for_everyone()
        yield
        launch.wait_for_everyone()


def gathered(own: Tensor, count: int, launch: Accelerator) -> Tensor:
    """Join what each process has of a batch, ``(V·n, ...)`` to ``(V·N, ...)``, in batch order.

    ``count`` is n, the images of this process, and V the views or subnets: all images of one view
    stay together. Only the process's own part keeps its gradient.
    """
    if launch.num_processes == 1:
        return own
    own = own.unflatten(0, (-1, count))
    parts = list(launch.gather(own.detach()[None].contiguous()))
    parts[launch.process_index] = own
    return torch.cat(parts, dim=1).flatten(0, 1)


def gathered_answer(answer: Seen, count: int, launch: Accelerator) -> Seen:
    """:func:`gathered` of the logits and all features of an answer."""
    logits = gathered(answer.logits, count, launch)
    return Seen(logits, tuple(gathered(each, count, launch) for each in answer.features))
