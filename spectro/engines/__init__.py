"""Engines that compute the network: PyTorch, ONNX Runtime, OpenVINO; and the exports that the last two read."""
