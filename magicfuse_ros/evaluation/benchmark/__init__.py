"""`magicfuse benchmark`: what it measures, what it makes of the figures, and how it shows them."""
