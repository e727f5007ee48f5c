"""Where the work of a stage runs: in this process and its threads, or on a Ray cluster."""
