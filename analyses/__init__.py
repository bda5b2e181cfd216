"""The experiments: one file, one published method, one table, one figure.

Every module has `run(model, pairs, *, ...) -> DataFrame`, `plot(frame) -> Figure`, `report(...)` for its section of a
task's report, and `main`, its command. A new file here is found by `analyses.cli` and `analyses.report`.
"""
