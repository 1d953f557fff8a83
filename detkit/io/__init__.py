"""Reading and writing pictures, videos and detections."""
