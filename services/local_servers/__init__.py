"""Postgres and an object store on this machine's loopback, for the tests of a shared lake and for trying one.

Belongs here: starting, stopping and breaking these two servers. Does not belong here: anything for real use. The
object store keeps everything in memory and forgets it when it stops.
"""
