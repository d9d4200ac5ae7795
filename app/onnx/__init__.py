"""ONNX files of trained networks: export them, compare them with torch, check the challenge's rules."""
