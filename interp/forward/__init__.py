"""What the layers of one forward share: positions, masks, rotary angles, rows of edited runs."""
