"""Numbers worth believing: the demo, measurements of whole runs, and their records."""
