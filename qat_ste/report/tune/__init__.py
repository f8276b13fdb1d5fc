"""The choice of learning rates in a tuning study, its answers, page and figures."""
