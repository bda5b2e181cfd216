"""The weights of `interp.load("toy")`, and the script that trained them."""
