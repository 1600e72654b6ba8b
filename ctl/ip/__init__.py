"""`spiderpoolctl ip`: single addresses, looked at and changed by hand."""
