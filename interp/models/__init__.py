"""The residual stack: attention and MLP layers, blocks of them, and the models built of blocks."""
