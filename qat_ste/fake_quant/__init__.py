"""Quantized weights of any module, and the flat buffers that hold them."""
