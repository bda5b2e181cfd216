"""`interp.sweep`: many edits in one pass. Plan, run, record."""
