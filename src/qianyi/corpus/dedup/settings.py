"""What `qianyi data dedup` may be told."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from qianyi.config.part import Count, Fraction, Part, Positive


class Sketching(Part):
    """How documents are made comparable: what differs in it cannot be compared."""

    bands: Positive = 14
    """Bands of the signature; two documents are compared if one band is equal."""
    rows: Positive = 8
    """Hashes in a band."""
    ngram: Positive = 5
    """Tokens in a shingle: words, or characters of scripts without spaces."""
    seed: Count = 1
    """Seeds the hashes."""

    @property
    def hashes(self) -> int:
        return self.bands * self.rows

    @property
    def words(self) -> int:
        """64-bit numbers that hold two bits of each hash."""
        return -(-self.hashes // 32)


class DedupSettings(Part):
    """Sub-stages in their order, each of which may be off."""

    exact: bool = True
    """Drop documents that are equal up to case, width, spaces and punctuation."""
    near: bool = True
    """Drop documents that are similar by MinHash."""
    similarity: Fraction = 0.75
    """Estimated Jaccard similarity from which a candidate is a duplicate. The estimate errs by about 0.045, so this finds pairs of 0.8."""
    sketching: Sketching = Sketching()
    quality: str = "stat_quality"
    """Column whose largest value survives first; where there is none, or of equals, the smallest id."""
    paragraphs: Literal["off", "exact", "near"] = "exact"
    """Cut paragraphs (lines) that stood before, in the same document or another: equal ones, or also similar ones."""
    paragraph_tokens: Positive = 20
    """Shorter paragraphs stay."""
    paragraph_similarity: Fraction = 0.8
    """As `similarity`."""
    paragraph_sketching: Sketching = Sketching(bands=8, rows=6)
    """As `sketching`."""
    substring_bytes: Annotated[int, Field(ge=0)] = 200
    """Cut what stood before for at least so many bytes of UTF-8; 0: do not. 200 is near the 50 tokens of Lee et al. (2022)."""
    sample_documents: Count = 2000
    """Documents on which recall and precision are measured by exact Jaccard similarity, about, and 8 MB of text at most; 0: none."""

    @model_validator(mode="after")
    def _check(self) -> "DedupSettings":
        if 0 < self.substring_bytes < 64:
            raise ValueError(f"substring_bytes is {self.substring_bytes}: at least 64, or 0 for off")
        if not (self.exact or self.near or self.paragraphs != "off" or self.substring_bytes):
            raise ValueError("every sub-stage is off: nothing to do")
        return self
