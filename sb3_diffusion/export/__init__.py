"""
The policy as a file that needs neither this library nor Stable-Baselines3 nor, as ONNX, PyTorch (docs/deployment.md).

    python -m sb3_diffusion.export MODEL.zip OUT.onnx

Needs the extra ``export``: onnx and onnxruntime.
"""

from sb3_diffusion.export.files import export_onnx, export_torch
from sb3_diffusion.export.verification import ExportError

__all__ = ["ExportError", "export_onnx", "export_torch"]
