"""From documents to clean ones: text repaired, measured and judged."""
