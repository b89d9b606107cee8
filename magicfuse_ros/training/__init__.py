"""Training of MagicFuse: harsh-condition degradations, datasets and the training loops."""
