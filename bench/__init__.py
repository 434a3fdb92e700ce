"""The bars, measured: each module measures one room against its peers in one process, arms interleaved.

`python -m bench` runs all, `python -m bench cache calls` some; `--json FILE` keeps the figures, `--quick` takes fewer
rounds.
"""
