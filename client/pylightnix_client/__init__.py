"""The client: who asks. The command line `pylightnix`, and conversations with the daemon that owns a store.

`pylightnix` imports it in one place only, and only where it meets a daemon. `client.Client` and `aio.AsyncClient` are
for programs, see `docs/how-to/follow-builds-from-a-program.md`; the rest of this package is not a library interface.
"""
