"""From records to images on disk and a split that can be believed."""
