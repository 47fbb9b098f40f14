"""Duplicates removed: documents, paragraphs, long substrings."""
