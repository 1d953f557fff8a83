"""Training, evaluation and prediction: one loop each, for every family of detectors."""
