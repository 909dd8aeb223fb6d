"""Networks by name: the zoo, published weights, OFA-595 and its supernet, paper B's student."""

from kdnb.device import precision
from kdnb.models.capabilities import check
from kdnb.models.predict import predict
from kdnb.models.zoo import (
    SUPERNET,
    ZOO,
    Classifier,
    checksum,
    count_layers,
    count_macs,
    count_parameters,
    create,
    resolve,
)

__all__ = [
    "Classifier",
    "SUPERNET",
    "ZOO",
    "check",
    "checksum",
    "count_layers",
    "count_macs",
    "count_parameters",
    "create",
    "precision",
    "predict",
    "resolve",
]
