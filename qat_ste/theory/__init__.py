"""When a custom estimator is an STE in disguise: assumptions, weight map M, learning-rate factor α."""
