"""What the report shows: numbers, figures, thumbnails, and the template they go into."""
