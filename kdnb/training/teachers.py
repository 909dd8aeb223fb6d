"""The teachers' answers: for each batch, or once for all images and kept on disk."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdnb import device, files
from kdnb.data import Dataset
from kdnb.distillation.base import Seen, see
from kdnb.models import zoo
from kdnb.models.predict import predict
from kdnb.models.zoo import Classifier
from kdnb.training import processes


def frozen(teacher: Classifier) -> Classifier:
    """A copy that gives the same answers sooner.

    Its weights are rounded to half precision once, where autocast would do so for every batch.
    """
    teacher = copy.deepcopy(teacher).to(memory_format=torch.channels_last).eval()
    teacher.requires_grad_(False)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(device.precision())
    if half is not None:
        for module in teacher.modules():
            # a subclass may do more with its weights than multiply
            if type(module) in (nn.Conv2d, nn.Linear):
                module.to(half)
    return teacher


def answers(teachers: Sequence[Classifier], images: Tensor, taps: int) -> list[Seen]:
    """Each teacher's logits and ``taps`` maps for images ``(N, 3, S, S)`` in [0, 1], in float32.

    The teachers must be in eval mode; they stay as they are.
    """
    with torch.inference_mode(), device.autocast(images.device):
        found = [see(teacher, images, taps) for teacher in teachers]
    # copied outside: a tensor of the inference mode may not enter the student's graph
    return [
        Seen(each.logits.float().clone(), tuple(maps.float().clone() for maps in each.features))
        for each in found
    ]


def soft_target_table(teachers: list[Classifier], dataset: Dataset, image_size: int) -> Tensor:
    """Logits ``(M, N, K)`` of M teachers for all N images, not augmented, kept on disk.

    The file is keyed by the teachers' weights, the data's checksum, the size and the transform: a
    change of any of them makes another file.
    """
    key = {
        "teachers": [zoo.checksum(teacher.network) for teacher in teachers],
        "data": dataset.checksum,
        "image_size": image_size,
        "transform": "none",
        "precision": device.precision(),
    }
    name = f"{dataset.spec.slug}-{files.digest(key)}.safetensors"
    path = files.cache_dir() / "soft-targets" / name
    with processes.accelerator().main_process_first(), files.lock(path):
        if not path.exists():
            pixels = dataset.pixels(image_size)
            logits = torch.stack([torch.from_numpy(predict(each, pixels)) for each in teachers])
            with files.atomic(path) as temporary:
                save_file({"logits": logits}, temporary, {"key": json.dumps(key)})
    return load_file(path)["logits"]
