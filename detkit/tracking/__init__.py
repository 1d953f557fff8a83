"""Objects followed from frame to frame: the tracker, and what is counted and drawn of its tracks."""
