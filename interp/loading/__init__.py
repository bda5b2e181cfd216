"""`interp.load` and `interp.save`: a model from wherever it is, bridged ones too, and back to files."""
