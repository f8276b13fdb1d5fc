"""The commands: composition with Hydra, validation, one run, sweeps, the atlas."""
