"""The figure and the text of an estimator's card."""
