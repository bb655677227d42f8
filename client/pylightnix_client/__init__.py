"""The client: who asks. For now the command line `pylightnix` over the embedded store.

Must not be imported by `pylightnix`. What stands in this package is not a library interface.
"""
