"""What computes: the only package that knows ONNX and ONNX Runtime."""

import os

# ONNX Runtime's wheels report usage unless told not to before they are imported, which any module
# of this package may be the first to do.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
