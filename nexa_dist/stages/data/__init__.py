"""The stage data: rows of Parquet, JSONL or CSV become a clean, deduplicated, split dataset with its statistics."""
