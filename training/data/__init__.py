"""Data sets: the format on disk, where they come from (MovieLens, Amazon Beauty, your files), and splits."""
