"""From a model to predictions, and from predictions to figures that carry their uncertainty."""
