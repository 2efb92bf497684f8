"""Which patches are hidden: backbones and data transforms."""
