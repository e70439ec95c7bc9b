"""Charts as inline SVG, and the pages around them: nothing is loaded, light or dark."""
