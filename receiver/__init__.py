"""Take signed webhook deliveries and keep them: `200` is answered only when an event is durable.

The steps, each a module:

    server      sockets, deadlines, limits; several processes
    app         bytes in, status out (Flask)
    signature   who signed this?
    spool       append, sync, seal, recover: the only place that writes events
    record      one line of the spool
    segment     the files of the spool, and `scan` for what is in them

What is always true of the spool:

1. A line that was acknowledged is on stable storage, in one file of open/, ready/ or loaded/.
2. A file in open/ has one writer, which holds its lock; whoever gets the lock may seal it.
3. A file in ready/ or loaded/ never changes. A name never changes, and seeds the checksums.
4. After a failed write or sync nothing more is written to that file.
5. No byte is deleted or cut before it is durable somewhere else.
"""
