"""Predictors made of others, and what comes out of a stream: ensembles, test-time views, torchvision's detectors."""
