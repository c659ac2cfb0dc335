"""Constrained fine-tuning of one ``W_out``, the baseline FT+L."""
