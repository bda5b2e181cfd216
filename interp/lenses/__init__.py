"""Reading the residual stream at every depth: logit lens, tuned lens, and the target prompts of Patchscopes."""
