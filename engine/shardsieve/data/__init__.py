"""What flows between the stages: columns, one row per sample, the same row order everywhere."""
