"""A page on a corpus: what came in, what was dropped and why, what is left."""
