"""From manifests to batches of tensors."""
