"""What did masking make the model learn: hooks and metrics."""
