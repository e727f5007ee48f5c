"""One module per measurement: `measure(quick)` checks, then times; `describe(result)` prints."""
