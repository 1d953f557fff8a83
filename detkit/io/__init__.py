"""Reading and writing images, videos and detections."""
