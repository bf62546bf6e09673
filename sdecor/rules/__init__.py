"""Backward-pass rules of DeepLIFT, LRP and guided gradients, applied to a network read as a list of steps."""
