"""What a network costs on a device: operations, latency, ONNX files, the search for a student."""
