"""Load the spool into the warehouse: one run, start to end.

1. take     the sealed segments, check every line (`take`)
2. ask      the warehouse which segments and events it holds already (`warehouse`)
3. parse    the bodies of new events into a nested Arrow batch (`parse`)
4. flatten  the batch into one flat Arrow table per warehouse table (`flatten`);
            an event that does not fit its declared types goes value by value (`odd`)
5. load     the flat tables with dlt, in bounded packages (`midbound`, `load`)
6. verify   that each new event is there once, with its child rows; only then
            are the segments marked loaded (`load`)

What the tables are called and typed stands in `schema`, once. Nothing here imports
Flask; the spool's format comes from `receiver.record` and `receiver.segment`.
"""
