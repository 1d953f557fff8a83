"""Predictors made of others: ensembles, test-time views, slices, torchvision's detectors, how what is found looks."""
