"""`interp explore`: type a prompt, change any head, and watch what comes next, in a page that this machine serves."""
