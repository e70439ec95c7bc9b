"""What computes: the only package that knows ONNX and ONNX Runtime."""
