"""Detectors from other programs' files, one file a program."""
