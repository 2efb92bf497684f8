"""Which pixels come from another image: siamese algorithms and a batch augmentation."""
