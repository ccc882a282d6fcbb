"""How the processes of a job find, know and reach each other: from a mesh's axes to links.

`membership` turns axes into groups of devices; `presence` lets the others know of this process;
`bootstrap` links it to them, by the job's store (`store_thread`), with a `handshake` in
which both ends prove that they know the job's `secret`. The entry points are `membership` and
`presence`; all but these two work without JAX.
"""
