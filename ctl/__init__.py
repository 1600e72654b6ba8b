"""The command line `spiderpoolctl`: one module per verb."""
