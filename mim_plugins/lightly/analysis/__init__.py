"""What did masking make the model learn: Lightning callbacks."""
