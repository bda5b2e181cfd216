"""Views that can be pointed at: real numbers of one model, in a notebook, a report or a page of their own."""
