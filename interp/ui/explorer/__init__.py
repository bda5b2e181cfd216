"""`interp explore`: type a prompt, change any part, and watch what comes next, in a page that this machine serves."""
