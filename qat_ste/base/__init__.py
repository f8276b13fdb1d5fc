"""What the rest stands on: errors, text, files, run configurations, process set-up. Imports no torch."""
