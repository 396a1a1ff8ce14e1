"""What magics and panels have in common: how things are shown and what they are called."""
