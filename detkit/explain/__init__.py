"""What a network looks at: filters, maps, patches, Grad-CAM, edges, and its layers as a table."""
