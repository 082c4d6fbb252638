"""Whether what is stored is what was made, and can be made again."""
