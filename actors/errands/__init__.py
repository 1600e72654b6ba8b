"""Programs that do one thing and end: what the hooks of the chart run."""
