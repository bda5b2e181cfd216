"""The experiments: one file, one published method, one table, one figure.

Every module has `run(model, pairs, *, ...) -> DataFrame`, `summary(frame)`, `plot(frame) -> Figure` and `main`, its
command. What a task's report says of it is in the file of its name in `analyses.sections`. New files are found by
`analyses.cli` and `analyses.report`.
"""
