"""What is added to the loss of a masked module."""
