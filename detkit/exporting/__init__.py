"""Detectors as ONNX files: written, proven equal to what they were made of, and run without torch."""
