"""The figure and text of one estimator."""
