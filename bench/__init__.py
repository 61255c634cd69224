"""The figures that pyimago promises, against what one would use instead: `python -m bench`, or `make bench`.

`rows` holds the table, `measure` the one way of measuring, `lab` the images;
the works are in `reads`, `writes`, `packing`, `checks`, `snapshots` and `processes`.
"""
