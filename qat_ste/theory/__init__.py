"""The equivalence of an estimator and the STE: assumptions, weight map M, learning-rate factor α."""
