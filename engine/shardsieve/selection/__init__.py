"""Recipes: from the probe's losses to p_clean, in arithmetic alone; no files, no settings read."""
