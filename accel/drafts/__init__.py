"""Who drafts: first drafts, trees, positions, heads; knows nothing about acceptance."""
