"""A trained network as an ONNX file: making it, comparing it with what it was made from, the challenge's rules."""
