"""What runs inside a sandbox: the standard library only, so that an empty file system with a Python will do.

These modules are imported by a bare interpreter (`zygote`), never by anything that holds weights or keys. `values` is
shared with our own process, where returned values are compared.
"""
