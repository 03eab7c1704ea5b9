"""Dataset preparation, one file per data set."""
