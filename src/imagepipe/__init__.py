"""imagepipe: a reproducible image-classification pipeline."""
