"""What a sweep changes: grids of sites, components, and the values that replace ablated ones."""
