"""What a network costs on a device: operations, latency, ONNX files, the search for a student."""

from kdnb.deployment import search
from kdnb.deployment.efficiency import measure, static
from kdnb.deployment.onnx_export import export
from kdnb.deployment.release import load

__all__ = ["export", "load", "measure", "search", "static"]
