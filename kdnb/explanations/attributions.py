"""How each method of the registry computes its maps: a function from a :class:`Job` to maps
``(N, H, W)``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pytorch_grad_cam
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from kdnb import files
from kdnb.explanations import scorecam, shapley
from kdnb.explanations.activations import enlarge, spatial
from kdnb.explanations.base import Job
from kdnb.explanations.inputs import check_images


def score_cam(job: Job) -> tuple[Tensor, Tensor]:
    """Score-CAM and its effective channels. Raises ``ValueError`` unless a tolerance lies in
    (0, 1)."""
    options = job.options
    files.lookup(options["score"], scorecam.SCORES, "score")
    if options["tolerance"] is not None and not 0 < options["tolerance"] < 1:
        raise ValueError(
            f"tolerance is a rank correlation above 0 and below 1, got {options['tolerance']}; "
            "tolerance=None scores every channel"
        )
    weigh = partial(
        scorecam.Sweep.weights, score=options["score"], channel_softmax=options["channel_softmax"]
    )
    found = scorecam.sweep(
        job.network,
        job.x,
        spatial(job.model, job.output, job.layer).float(),
        job.targets,
        job.model.num_classes,
        options["channels"] or None,
        options["fast"],
        options["batch"],
        options["tolerance"],
        weigh,
    )
    weights = weigh(found, job.targets)
    return enlarge(found.maps(weights), job.x.shape[-2:]), scorecam.effective_channels(weights)


def library_cam(name: str) -> Callable[[Job], np.ndarray]:
    """A method of pytorch-grad-cam by the name of its class."""

    def run(job):
        def reshape(output):
            return spatial(job.model, output, job.layer)

        layers = [job.network.get_submodule(job.layer)]
        cam = getattr(pytorch_grad_cam, name)(job.network, layers, reshape)
        targets = [ClassifierOutputTarget(int(target)) for target in job.targets]
        return cam(job.x.clone().requires_grad_(), targets)

    return run


def captum(
    build: Callable[[nn.Module], object], reduce: str = "sum", **arguments: object
) -> Callable[[Job], Tensor]:
    """A method of captum; ``arguments`` that are functions are called with the job.

    Colour channels are summed, or reduced to their largest magnitude with ``reduce="max"``.
    """

    def run(job):
        given = {
            name: value(job) if callable(value) else value for name, value in arguments.items()
        }
        with warnings.catch_warnings():
            # of hooks, which ``untouched`` removes again
            warnings.filterwarnings("ignore", message="Setting")
            x = job.x.clone().requires_grad_()
            values = build(job.network).attribute(x, target=job.targets, **given).detach()
        return values.sum(1) if reduce == "sum" else values.abs().amax(1)

    return run


def occlusion_patch(options: Mapping[str, object], image_size: int) -> tuple[int, int]:
    """Side and stride of the occluded square in pixels: ``window``, or the image's side divided by
    ``cells``; ``stride``, or half a square, so that neighbours overlap by half."""
    window = options["window"] or max(2, image_size // options["cells"])
    return window, options["stride"] or max(1, window // 2)


def occlusion_window(job: Job) -> tuple[int, int, int]:
    """Channels, height and width of the occluded square."""
    window, _ = occlusion_patch(job.options, job.x.shape[-1])
    return (3, window, window)


def occlusion_stride(job: Job) -> tuple[int, int, int]:
    """Its steps over channels, rows and columns."""
    _, stride = occlusion_patch(job.options, job.x.shape[-1])
    return (3, stride, stride)


def shap(job: Job) -> Tensor:
    """SHAP values summed over colours. Raises ``ValueError`` without background images."""
    background = job.options["background"]
    if not isinstance(background, Tensor):
        raise ValueError(
            "shap needs background=images (B, 3, S, S): some training images, for example 20"
        )
    background = (check_images(background, job.model) - job.model.mean) / job.model.std
    options = {name: job.options[name] for name in ("samples", "seed", "draws")}
    values = shapley.gradient_shap(job.network, job.x, job.targets, background, **options)
    return values.sum(1)


def random_map(job: Job) -> Tensor:
    """Uniform noise on a 7×7 grid, enlarged."""
    generator = torch.Generator().manual_seed(job.options["seed"])
    noise = torch.rand(len(job.x), 7, 7, generator=generator)
    return enlarge(noise, job.x.shape[-2:])


def centre_prior(job: Job) -> Tensor:
    """The same Gaussian at the centre of every image."""
    axis = torch.linspace(-1, 1, job.x.shape[-1])
    bump = torch.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * job.options["width"] ** 2))
    return bump.expand(len(job.x), -1, -1)
