"""Experiments: YAML and overrides, checked, and what is built from them. One file is one complete experiment."""
