"""A trained model at work on images that no manifest names, and on its way to other programs; part of no stage."""
