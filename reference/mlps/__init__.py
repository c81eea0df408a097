"""MLPs, dense and of experts."""
