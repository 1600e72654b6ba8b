"""What of the chart is made from the rest of it."""
