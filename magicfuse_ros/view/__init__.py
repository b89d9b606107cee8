"""The live page of `magicfuse view`: what is shown, where it comes from, and its server."""
