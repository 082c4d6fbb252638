"""What every room stands on: errors, strict parameters, atomic files and the manifest contract."""
