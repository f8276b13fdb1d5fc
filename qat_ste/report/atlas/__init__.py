"""The page and figures of an atlas."""
