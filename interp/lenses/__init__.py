"""Reading the residual stream at every depth: logit lens and tuned lens."""
