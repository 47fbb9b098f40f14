"""Everything that comes in: sources are planned into units of items, whose readers yield documents and refusals."""
