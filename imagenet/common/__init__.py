"""What both script folders share. The two copies of this folder are identical."""
