"""The parts of ``scripts/gpu_check.py``, several to a module."""
