"""The explorer's page inside a notebook, where the kernel answers it: `interp.show(model, prompt, live=True)`."""
