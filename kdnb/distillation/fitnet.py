"""FitNets: the student first reproduces a hidden layer of its teacher, then learns its task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from kdnb.distillation.base import Course, Method, Seen, projected, register
from kdnb.distillation.soft_targets import TEMPERATURE, hard_loss, soft_loss, soft_targets
from kdnb.models.zoo import Classifier
from kdnb.parameters import parameter


@register("fitnet")
class FitNet(Method):
    """Stage 1 minimises ½‖hint − regressor(student's map)‖² (Romero et al. 2015, equation 3), stage
    2 minimises cross-entropy + λ · cross-entropy with the soft targets, λ falling (equation 2).

    Ours: a 1×1 convolution as regressor, on the coarser grid of the two maps; the distance is a
    mean over images and cells; one learning rate schedule spans both stages.
    """

    title, paper = "hints, then soft targets", "Romero et al. 2015, arXiv:1412.6550"
    idea = (
        "A hidden layer of the student first learns to predict a hidden layer of the teacher, the "
        "hint; then the student learns from labels and soft targets."
    )
    equation = (
        r"\mathcal{L}_1 = \frac{1}{2} \lVert h_t - r(h_s) \rVert^2"
        r" \\ \mathcal{L}_2 = \mathrm{CE}(y, p_s) + \lambda(t)\, \mathrm{H}(p_t^{(T)}, p_s^{(T)})"
    )
    reported = "a thin student that is given hints is better than one with soft targets alone"
    reported_on = "natural images and digits (CIFAR, SVHN, MNIST)"
    transfers = ("labels", "probabilities", "maps")
    version = 2

    @dataclass(frozen=True)
    class Options(Method.Options):
        """The paper's values on CIFAR-10; both of its stages have the same limit of epochs."""

        temperature: float = parameter(3.0, TEMPERATURE, low=0.01)
        first_lambda: float = parameter(4.0, "weight of the soft targets at first", low=0)
        last_lambda: float = parameter(1.0, "weight of the soft targets in the end", low=0)
        hint_share: float = parameter(0.5, "share of the epochs that is stage 1", low=0, high=0.9)
        hint_layer: int = parameter(2, "stage that gives the hint, from the last", low=1, high=4)

    @property
    def taps(self) -> int:
        """Layers that are read, down to the one that gives the hint."""
        return self.options.hint_layer

    def build(self, student: Seen, teachers: Sequence[Seen], course: Course) -> None:
        """A regressor for each teacher."""
        self.hinted = int(self.options.hint_share * course.epochs)
        self.soft_epochs = course.epochs - self.hinted
        width = student.features[-1].shape[1]
        self.regressors = nn.ModuleList(
            nn.Conv2d(width, teacher.features[-1].shape[1], 1) for teacher in teachers
        )

    def embed(
        self, images: Tensor, student: Seen, teachers: Sequence[Seen]
    ) -> tuple[Seen, Sequence[Seen]]:
        """The student's regressed map for each teacher, and the teachers' hints, on one grid."""
        return projected(self.regressors, student, teachers, layer=-1)

    def start_epoch(self, epoch: int, student: Classifier) -> None:
        """Choose the stage, and lambda within the second."""
        options, done = self.options, (epoch - self.hinted) / max(1, self.soft_epochs - 1)
        self.hinting = epoch < self.hinted
        self.weight = options.first_lambda + (options.last_lambda - options.first_lambda) * done

    def selectable(self, epoch: int) -> bool:
        """The classifier learns in stage 2 only."""
        return epoch >= self.hinted

    def loss(
        self, student: Seen, teachers: Sequence[Seen], labels: Tensor, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``{"loss", "hint_loss", "hard_loss", "soft_loss"}``.

        ``soft_loss`` leaves out the targets' entropy, a constant.
        """
        logits, temperature = self.teacher_logits(student, teachers), self.options.temperature
        targets = soft_targets(logits, temperature, self.teacher_weights(teachers))
        soft = soft_loss(student.logits, targets, temperature) / temperature**2
        hard = hard_loss(student.logits, labels, self.class_weights)
        distances = [
            0.5 * (own.float() - teacher.features[0].float()).square().sum(1).mean()
            for own, teacher in zip(student.features, teachers, strict=True)
        ]
        hint, task = self.averaged(distances), hard + self.weight * soft
        # every parameter takes part in every step; what does not learn has weight zero
        loss = hint + 0 * task if self.hinting else task + 0 * hint
        return {"loss": loss, "hint_loss": hint, "hard_loss": hard, "soft_loss": soft}
