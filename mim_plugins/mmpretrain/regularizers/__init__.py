"""What is added to the reconstruction loss: algorithms and heads."""
