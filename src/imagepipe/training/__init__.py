"""From batches to a fitted model."""
