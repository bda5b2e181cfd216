"""The mechanism that the tables of a report support: which parts carry the answer, what each does, what feeds what."""
