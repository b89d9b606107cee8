"""`magicfuse benchmark`: what it measures of the engine, what it makes of it, how it tells it."""
