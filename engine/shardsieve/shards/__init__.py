"""Tar shards: finding them, reading their headers, their labels and images, copying samples."""
