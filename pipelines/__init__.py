"""Load the spool into the warehouse: one run, start to end.

1. take     the sealed segments, check every line (`take`)
2. parse    their bodies into a nested Arrow batch (`parse`, `freeform`)
3. flatten  the batch into one flat Arrow table per warehouse table (`flatten`);
            an event that does not fit its declared types goes value by value (`odd`)
4. ask      the warehouse which segments and events it holds already (`warehouse`)
5. build    the tables of what is new, each column in its place (`build`)
6. load     the tables with dlt, in bounded packages (`midbound`, `packages`)
7. verify   that every row that was sent is there; only then are the segments
            marked loaded (`packages`)

The first three steps need neither dlt nor the warehouse, and run ahead (`ahead`). What the
tables are called and typed stands in `schema`, once. Nothing here imports Flask; the spool's
format comes from `receiver.record` and `receiver.segment`.
"""
