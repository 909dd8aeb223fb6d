"""Every method of explanation under one call, for any model of the zoo.

To add a method, add one entry to ``METHODS``; its ``run`` takes a :class:`Job` and returns maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import captum.attr
import numpy as np
import torch
from torch import Tensor

from kdnb import files
from kdnb.explanations import attributions
from kdnb.explanations.activations import untouched, watch
from kdnb.explanations.base import Explanation, Job, Method
from kdnb.explanations.inputs import check_images, check_logits, check_targets
from kdnb.models import capabilities
from kdnb.models.zoo import Classifier


def _of_score_cam(options: Mapping[str, object], image_size: int) -> str:
    channels, tolerance = options["channels"], options["tolerance"]
    some = "channels" if channels is None else f"at most {channels} channels"
    every = (channels, tolerance) == (None, None)
    until = "" if tolerance is None else f" until maps correlate by {tolerance}"
    words = [
        f"score: class {options['score']} of the masked image",
        f"{'softmax' if options['channel_softmax'] else 'no softmax'} over channels",
        "all channels scored" if every else f"{some} scored{until}",
        *([] if every else ["the logits of the others are predicted"]),
        *(["in bfloat16"] if options["fast"] else []),
    ]
    return "; ".join(words)


def _of_occlusion(options: Mapping[str, object], image_size: int) -> str:
    window, stride = attributions.occlusion_patch(options, image_size)
    return f"squares of the mean colour, side {window} px, stride {stride} px"


METHODS: dict[str, Method] = {
    "score_cam": Method(
        title="Score-CAM",
        source="Wang et al. 2020, arXiv:1910.01279",
        definition=_of_score_cam,
        run=attributions.score_cam,
        options={
            "score": "logit",
            "channel_softmax": True,
            "channels": None,
            "tolerance": None,
            "fast": False,
            "batch": None,
        },
        reads_layer=True,
    ),
    "grad_cam": Method(
        title="Grad-CAM",
        source="Selvaraju et al. 2017, arXiv:1610.02391",
        definition="gradients of the class logit",
        run=attributions.library_cam("GradCAM"),
        reads_layer=True,
    ),
    "grad_cam_pp": Method(
        title="Grad-CAM++",
        source="Chattopadhay et al. 2018, arXiv:1710.11063",
        definition="gradients of the class logit",
        run=attributions.library_cam("GradCAMPlusPlus"),
        reads_layer=True,
    ),
    "eigen_cam": Method(
        title="Eigen-CAM",
        source="Muhammad & Yeasin 2020, arXiv:2008.00299",
        definition="first principal component of the activations; independent of the class",
        run=attributions.library_cam("EigenCAM"),
        reads_layer=True,
    ),
    "layer_cam": Method(
        title="Layer-CAM",
        source="Jiang et al. 2021, doi:10.1109/TIP.2021.3089943",
        definition="gradients of the class logit",
        run=attributions.library_cam("LayerCAM"),
        reads_layer=True,
    ),
    "shap": Method(
        title="SHAP",
        source="Lundberg & Lee 2017, arXiv:1705.07874",
        definition="expected gradients of the class logit; {samples} {draws} samples, {background} "
        "background images, seed {seed}",
        run=attributions.shap,
        options={"background": None, "samples": 64, "seed": 0, "draws": "stratified"},
        signed=True,
    ),
    "integrated_gradients": Method(
        title="Integrated gradients",
        source="Sundararajan et al. 2017, arXiv:1703.01365",
        definition="from the mean colour; {steps} steps",
        run=attributions.captum(
            captum.attr.IntegratedGradients,
            n_steps=lambda job: job.options["steps"],
            internal_batch_size=64,
        ),
        options={"steps": 32},
        signed=True,
    ),
    "occlusion": Method(
        title="Occlusion",
        source="Zeiler & Fergus 2014, arXiv:1311.2901",
        definition=_of_occlusion,
        run=attributions.captum(
            captum.attr.Occlusion,
            sliding_window_shapes=attributions.occlusion_window,
            strides=attributions.occlusion_stride,
            perturbations_per_eval=8,
        ),
        options={"cells": 8, "window": None, "stride": None},
        signed=True,
    ),
    "saliency": Method(
        title="Saliency",
        source="Simonyan et al. 2014, arXiv:1312.6034",
        definition="largest gradient magnitude over colour channels",
        run=attributions.captum(captum.attr.Saliency, reduce="max"),
    ),
    "input_x_gradient": Method(
        title="Input × gradient",
        source="Shrikumar et al. 2017, arXiv:1605.01713",
        definition="gradients of the class logit",
        run=attributions.captum(captum.attr.InputXGradient),
        signed=True,
    ),
    "guided_backprop": Method(
        title="Guided backpropagation",
        source="Springenberg et al. 2015, arXiv:1412.6806",
        definition="rectified at ReLUs; equal to the gradient in networks without ReLUs",
        run=attributions.captum(captum.attr.GuidedBackprop),
        signed=True,
    ),
    "deep_lift": Method(
        title="DeepLIFT",
        source="Shrikumar et al. 2017, arXiv:1704.02685",
        definition="rescale rule, from the mean colour",
        run=attributions.captum(captum.attr.DeepLift),
        signed=True,
    ),
    "random": Method(
        title="random map",
        source="control",
        definition="smoothed noise, seed {seed}",
        run=attributions.random_map,
        options={"seed": 0},
        control=True,
    ),
    "centre": Method(
        title="centre prior",
        source="control",
        definition="a Gaussian at the centre, standard deviation {width} of half the side",
        run=attributions.centre_prior,
        options={"width": 0.5},
        control=True,
    ),
}


def explain(
    model: Classifier,
    images: Tensor,
    method: str = "score_cam",
    targets: int | Sequence[int] | None = None,
    layer: str | None = None,
    batch_size: int = 16,
    **options: object,
) -> Explanation:
    """Explain the predictions of ``model`` for images ``(N, 3, S, S)`` in [0, 1] (or uint8).

    ``targets`` are class indices, one for all or one per image ``(N,)``; by default the predicted
    classes. ``layer`` is a module path for methods that read a layer (by default the zoo's choice).
    ``options`` are those of the method in ``METHODS``, which also names its source. The model's
    mode, buffers, gradients and hooks are left as they were. Raises ``UnknownName`` for a method,
    option or layer that does not exist, ``ValueError`` for images or targets that do not fit.
    """
    known, settings = METHODS[files.lookup(method, METHODS, "method")], _settings(method, options)
    layer = files.lookup(layer or model.cam_layer, dict(model.network.named_modules()), "layer")
    images = check_images(images, model)
    given = check_targets(model, len(images), targets)
    classes, parts, effective = [], [], []
    with untouched(model):
        x = (images - model.mean) / model.std
        for start in range(0, len(images), batch_size):
            rows = slice(start, start + batch_size)
            logits, output = watch(model, x[rows], layer)
            predicted = check_logits(model, logits).argmax(1)
            chosen = predicted if given is None else given[rows]
            classes.append(chosen.cpu())
            found = known.run(Job(model, x[rows], chosen, layer, output, settings))
            maps, channels = found if isinstance(found, tuple) else (found, None)
            parts.append(np.asarray(torch.as_tensor(maps).detach().float().cpu()))
            effective += [] if channels is None else channels.tolist()
    # a constant activation has no shape: its map is defined as zero
    maps = np.nan_to_num(np.concatenate(parts).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    return Explanation(
        method,
        maps,
        torch.cat(classes).numpy(),
        definition(model, method, layer, **options),
        np.array(effective) if effective else None,
    )


def definition(model: Classifier, method: str, layer: str | None = None, **options: object) -> str:
    """What a method computes with these options, in one line. Raises ``UnknownName`` for a method
    or option that does not exist."""
    known, settings = METHODS[files.lookup(method, METHODS, "method")], _settings(method, options)
    shown = {name: len(v) if isinstance(v, Tensor) else v for name, v in settings.items()}
    where = f"; layer {layer or model.cam_layer}" if known.reads_layer else ""
    if callable(known.definition):
        return known.definition(shown, model.image_size) + where
    return known.definition.format(**shown) + where


def _settings(method: str, options: dict) -> dict:
    known = METHODS[method].options
    for name in options:
        files.lookup(name, known, f"option of {method}")
    return known | options


@capabilities.register("explain", "explained")
def _can_be_explained(model: Classifier) -> None:
    """A Grad-CAM and some channels of a Score-CAM of one image; raises where there is no map."""
    images = torch.rand(1, 3, model.image_size, model.image_size)
    explain(model, images, "grad_cam")
    explain(model, images, "score_cam", channels=2)
