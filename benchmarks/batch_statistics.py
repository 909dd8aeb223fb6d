"""Test accuracy with batch-norm statistics of unaugmented training images against those of
augmented ones, for networks of the ``cpu`` study.

``KDNB_DATA=... python -m benchmarks.batch_statistics``. Networks of the study are loaded from the
cache or trained (hours). The first version of the training loop used statistics of augmented ones.
"""

from __future__ import annotations

import torch
from tqdm import tqdm

from kdnb import files, provenance
from kdnb.data import Dataset
from kdnb.evaluation import metrics
from kdnb.models.predict import predict
from kdnb.models.zoo import Classifier
from kdnb.study import Study
from kdnb.training import batch_norm, loop

BRAIN = {
    "profile": "quick",
    "image_size": 64,
    "dataset": "brain_tumor",
    "split": "official",
    "teacher": "densenet121",
    "teacher_epochs": 6,
}
STUDIES = [Study(**BRAIN, seed=seed) for seed in range(3)]


def views(dataset: Dataset, image_size: int) -> torch.Tensor:
    """The calibration images as the training loop augments them."""
    images = batch_norm.calibration_images(dataset, image_size)
    return dataset.augment()(images, torch.Generator().manual_seed(0))


def compare(dataset: Dataset, model: Classifier) -> dict:
    """Test accuracy of one network with either statistics, and the paired difference, clean minus
    augmented."""
    test = dataset.pixels(model.image_size, "test")
    labels, groups = test.labels[test.rows].numpy(), dataset.groups("test")
    sources = {
        "clean images": batch_norm.calibration_images(dataset, model.image_size),
        "augmented views": views(dataset, model.image_size),
    }
    logits = {
        name: predict(batch_norm.recalibrate(model, images), test)
        for name, images in sources.items()
    }
    balanced = {name: metrics.balanced_accuracy(labels, z.argmax(1)) for name, z in logits.items()}
    difference = metrics.compare(labels, logits["clean images"], logits["augmented views"], groups)
    return {
        "dataset": dataset.title,
        "split": dataset.split_name,
        "network": model.name,
        "image_size": model.image_size,
        "balanced_accuracy": balanced,
        "accuracy_clean_minus_augmented": difference,
    }


def main() -> None:
    """Measure and write ``outputs/benchmarks/batch_statistics.json``."""
    rows = []
    for study in tqdm(STUDIES, desc="studies", unit="study"):
        dataset = study.load_data()
        runs = loop.train_teachers(study, dataset)
        rows += [compare(dataset, run.model) | {"seed": study.seed} for run in runs]
        for row in rows[-len(runs) :]:
            print(row["network"], row["seed"], row["balanced_accuracy"], flush=True)
    path = files.outputs_dir() / "benchmarks" / "batch_statistics.json"
    print("wrote", files.write_json(path, {"results": rows, "provenance": provenance.collect()}))


if __name__ == "__main__":
    main()
