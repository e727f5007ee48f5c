"""One file per verb; each is a plain function over artefacts and knows no run directory."""
