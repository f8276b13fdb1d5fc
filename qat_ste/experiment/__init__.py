"""A reference and its counterparts, trained in lockstep, and what is measured of them."""
