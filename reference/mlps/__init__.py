"""MLPs, dense and of experts. Nothing here mixes elements of a sequence."""
