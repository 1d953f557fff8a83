"""Objects followed from frame to frame: the tracker, what is counted of its tracks, and how they look."""
