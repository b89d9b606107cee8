"""Where pictures come from: the one strict decoder, and the one reader of picture folders."""
