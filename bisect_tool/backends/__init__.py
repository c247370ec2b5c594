"""The two frameworks: loading, exporting, graph surgery, and the runners of PyTorch and ONNX Runtime."""
