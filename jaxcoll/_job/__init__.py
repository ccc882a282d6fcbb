"""How the processes of a job find, authenticate and connect to each other.

`membership` turns axes into groups of devices; `presence` announces this process to the others;
`bootstrap` links it to them, through the job's store (`store_thread`), with a `handshake` in which
both ends prove that they know the job's `secret`. The entry points are `membership` and `presence`;
all but these two work without JAX.
"""
