"""Data sets: reading, checking, splitting, converting, augmenting and loading labelled images."""
