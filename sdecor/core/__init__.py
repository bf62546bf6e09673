"""What every part stands on. Nothing here imports another part."""
