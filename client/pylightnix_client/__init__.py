"""The client: who asks. The command line `pylightnix`, and conversations with the daemon that owns a store.

`pylightnix` imports it in one place only, and only where it meets a daemon. What stands in this package is
not a library interface.
"""
