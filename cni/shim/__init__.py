"""The CNI executable and its build."""
