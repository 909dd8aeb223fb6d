"""Test accuracy of a linear model on pixels and of a CNN on the phantoms: ``make bench``."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from kdnb import data, files, provenance
from kdnb.distillation import create
from kdnb.images import phantoms
from kdnb.models.predict import predict
from kdnb.study import Study
from kdnb.training import loop

GOALS = {"linear": "below 0.75", "cnn": "0.95 or more"}


def linear(dataset: data.Dataset, side: int) -> float:
    """Best test accuracy over three strengths of regularisation, an upper bound."""
    flat = {}
    for split in ("train", "test"):
        pixels = dataset.pixels(side, split)
        flat[split] = (
            pixels.images[pixels.rows].flatten(1).numpy() / 255 - 0.5,
            pixels.labels[pixels.rows].numpy(),
        )
    models = (LogisticRegression(C=c, max_iter=300).fit(*flat["train"]) for c in (1e-4, 1e-3, 1e-2))
    return max(model.score(*flat["test"]) for model in models)


def cnn(dataset: data.Dataset) -> float:
    """Test accuracy of DenseNet121 from random weights, 10 epochs at 64 px."""
    study = Study(dataset=dataset.spec.name, image_size=64, batch_size=32)
    run = loop.fit(study, dataset, "densenet121", create("hard"), 10)
    test = dataset.pixels(64, "test")
    return float((predict(run.model, test).argmax(1) == test.labels[test.rows].numpy()).mean())


def main() -> None:
    """Measure all four modalities and write ``outputs/benchmarks/phantoms.json``."""
    rows = []
    for name in tqdm(phantoms.DRAWINGS, desc="phantoms", unit="set"):
        dataset = data.load(name)
        rows.append(
            {
                "dataset": name,
                "test_images": int((dataset.table["split"] == "test").sum()),
                **{
                    f"linear_{side}px": float(np.round(linear(dataset, side), 4))
                    for side in (32, 64)
                },
                "cnn": round(cnn(dataset), 4),
            }
        )
        print(rows[-1])
    path = files.outputs_dir() / "benchmarks" / "phantoms.json"
    print(
        "wrote",
        files.write_json(
            path, {"goals": GOALS, "results": rows, "provenance": provenance.collect()}
        ),
    )


if __name__ == "__main__":
    main()
